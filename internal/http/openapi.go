package http

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/fewbit/fewbit/internal/access"
)

// openAPIRoute is where the document is.
const openAPIRoute = "/openapi.json"

// object is a JSON object that is built once, when the server starts.
type object = map[string]any

// openAPI words the table of routes as an OpenAPI 3.1 document.
func openAPI(table []route, version string) ([]byte, error) {
	schemas := &schemaSet{named: object{}}
	paths := map[string]object{}
	for i := range table {
		r := &table[i]
		path := openAPIPath(r.path)
		if paths[path] == nil {
			paths[path] = object{}
		}
		paths[path][strings.ToLower(r.method)] = operation(r, schemas)
	}
	failure := object{"type": "object", "required": []string{"error"}, "properties": object{"error": object{"type": "string"}}}
	schemas.named["error"] = failure
	return json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{"title": "fewbit", "version": version, "license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
			"description": "Serves quantized ONNX models. Errors are {\"error\": text}, in the routes of OpenAI and Text Embeddings Inference in their forms. Keys travel as Authorization: Bearer or X-API-Key. Operations with x-role admin need an admin key unless the listener is loopback and no keys are configured; the others need a key as soon as there are keys for inference."},
		"paths": paths,
		"components": object{"schemas": schemas.named, "securitySchemes": object{
			"bearer": object{"type": "http", "scheme": "bearer"},
			"apiKey": object{"type": "apiKey", "in": "header", "name": "X-API-Key"},
		}},
	}, "", " ")
}

func operation(r *route, schemas *schemaSet) object {
	op := object{"summary": r.summary, "tags": []string{r.tag}, "operationId": operationID(r)}
	var params []object
	for _, name := range pathParams(r.path) {
		schema := object{"type": "string", "pattern": namePattern.String()}
		params = append(params, object{"name": name, "in": "path", "required": true, "schema": schema})
	}
	for _, q := range r.query {
		in := "query"
		if q.header {
			in = "header"
		}
		params = append(params, object{"name": q.name, "in": in, "description": q.about, "schema": object{"type": "string"}})
	}
	if params != nil {
		op["parameters"] = params
	}
	if r.body != nil {
		media := r.bodyType
		def(&media, "application/json")
		op["requestBody"] = object{"required": !r.optional, "description": fmt.Sprintf("At most %d bytes.", r.limit),
			"content": object{media: object{"schema": schemas.of(reflect.TypeOf(r.body))}}}
	}
	success := object{"description": http.StatusText(r.status)}
	if r.answer != nil {
		media := r.media
		def(&media, "application/json")
		success["content"] = object{media: object{"schema": schemas.of(reflect.TypeOf(r.answer))}}
	}
	failure := object{"$ref": "#/components/schemas/error"}
	if r.failure != nil {
		failure = schemas.of(reflect.TypeOf(r.failure))
	}
	responses := object{strconv.Itoa(r.status): success}
	for _, status := range append(slices.Clone(r.fails), http.StatusInternalServerError) {
		responses[strconv.Itoa(status)] = object{"description": http.StatusText(status),
			"content": object{"application/json": object{"schema": failure}}}
	}
	op["responses"] = responses
	if !r.open { // {}: without keys, see docs/security.md
		op["security"] = []object{{"bearer": []string{}}, {"apiKey": []string{}}, {}}
	}
	if r.admin {
		op["x-role"] = string(access.Admin)
	}
	return op
}

// operationID makes a name like post_v2_models_model_infer.
func operationID(r *route) string {
	words := strings.FieldsFunc(strings.ToLower(r.method)+"_"+r.path, func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) })
	return strings.Join(words, "_")
}

// schemaSet makes JSON schemas of Go types; structs with a name stand once,
// under components.
type schemaSet struct{ named object }

var (
	timeType = reflect.TypeFor[time.Time]()
	rawType  = reflect.TypeFor[json.RawMessage]()
)

func (s *schemaSet) of(t reflect.Type) object {
	switch t {
	case timeType:
		return object{"type": "string", "format": "date-time"}
	case rawType:
		return object{}
	}
	switch t.Kind() {
	case reflect.Pointer: // a pointer field may be null
		inner := s.of(t.Elem())
		if kind, ok := inner["type"].(string); ok {
			inner["type"] = []string{kind, "null"}
			return inner
		}
		return object{"anyOf": []object{inner, {"type": "null"}}}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "contentMediaType": "application/octet-stream"}
		}
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Interface:
		return object{}
	case reflect.Struct:
		if t.Name() == "" {
			return s.structure(t)
		}
		name := strings.TrimSuffix(t.Name(), "Doc")
		if _, ok := s.named[name]; !ok {
			s.named[name] = object{} // ends recursion
			s.named[name] = s.structure(t)
		}
		return object{"$ref": "#/components/schemas/" + name}
	}
	return object{"type": "integer"}
}

func (s *schemaSet) structure(t reflect.Type) object {
	props, required := object{}, []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || !f.IsExported() {
			continue
		}
		schema := s.of(f.Type)
		if f.Tag.Get("null") == "true" {
			schema["type"] = []string{schema["type"].(string), "null"}
		}
		if doc := f.Tag.Get("doc"); doc != "" {
			schema["description"] = doc
		}
		props[name] = schema
		if !strings.Contains(opts, "omitempty") {
			required = append(required, name)
		}
	}
	o := object{"type": "object", "properties": props, "additionalProperties": false}
	if len(required) > 0 {
		o["required"] = required
	}
	return o
}
