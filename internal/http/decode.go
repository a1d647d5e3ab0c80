package http

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
)

// decode reads a JSON body into v, a pointer to a struct, strictly: unknown,
// misspelled and duplicate fields are refused by name. When optional, an empty
// body leaves v as it is.
func (s *Server) decode(c *gin.Context, v any, optional bool) error {
	buf := getBuffer()
	defer buf.free()
	if err := s.readBody(c, buf, 0, MaxJSONBody, nil); err != nil {
		return err
	}
	if len(buf.b) == 0 {
		if optional {
			return nil
		}
		return badf("the body is empty: expected a JSON object")
	}
	return decodeStrict(buf.b, v)
}

// decodeStrict is decode over bytes. Nothing in v refers to b afterwards.
func decodeStrict(b []byte, v any) error {
	if !utf8.Valid(b) {
		return badf("the body is not UTF-8")
	}
	sc := &scanner{b: b}
	if err := checkFields(sc, reflect.TypeOf(v).Elem(), "", 0); err != nil {
		return err
	}
	if err := sc.end(); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		var te *json.UnmarshalTypeError
		if errors.As(err, &te) {
			return badf("field %q: expected %s, got %s", te.Field, kindName(te.Type), te.Value)
		}
		return badf("the body cannot be read as JSON")
	}
	return nil
}

// checkFields walks a JSON value beside the Go type that it will become.
func checkFields(s *scanner, t reflect.Type, at string, depth int) error {
	if depth > MaxJSONDepth {
		return s.errf("nested deeper than %d", MaxJSONDepth)
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	c := s.ws()
	switch {
	case t.Kind() == reflect.Struct && c == '{':
		fields := fieldsOf(t)
		seen := map[string]bool{}
		return s.object(func(key []byte) error {
			name := string(key)
			if at != "" {
				name = at + "." + name
			}
			f, ok := fields[string(key)]
			if !ok {
				names := make([]string, 0, len(fields))
				for n := range fields {
					names = append(names, n)
				}
				slices.Sort(names)
				return badf("unknown field %s, expected one of %s", clip([]byte(name)), strings.Join(names, ", "))
			}
			if seen[string(key)] {
				return badf("field %q is given twice", name)
			}
			seen[string(key)] = true
			return checkFields(s, f, name, depth+1)
		})
	case (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) && c == '[':
		return s.array(func(n int) error {
			if n >= MaxElements {
				return limitf("field %q has more than %d elements", at, MaxElements)
			}
			return checkFields(s, t.Elem(), at, depth+1)
		})
	case depth == 0:
		return s.errf("expected an object, got %s", s.what())
	}
	return s.skip()
}

// fieldsOf maps the JSON names of a struct's fields to their types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" && f.IsExported() {
			fields[name] = f.Type
		}
	}
	return fields
}

// kindName words a Go type for a client.
func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Pointer:
		return kindName(t.Elem())
	}
	return "an integer in range"
}
