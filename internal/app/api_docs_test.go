package app

import (
	"cmp"
	"context"
	stdflag "flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

var updateAPI = stdflag.Bool("update", false, "write docs/api.md anew, around its requests")

// operation is one of openapi.json's.
type operation struct {
	method, path string
	Summary      string
	Tags         []string
	Role         string `json:"x-role"`
	Security     []any
	Parameters   []struct{ Name, In, Description string }
	Body         *struct {
		Required    bool
		Description string
		Content     map[string]any
	} `json:"requestBody"`
	Responses map[string]struct{ Content map[string]any }
}

func (o *operation) title() string { return o.method + " " + o.path }

// tagOrder is that of the page.
var tagOrder = []string{"Models and datasets", "Open Inference Protocol", "Tasks", "Quantization jobs", "Operation"}

func operations(t *testing.T, s *server) (ops []*operation) {
	t.Helper()
	var doc struct {
		Paths map[string]map[string]*operation
	}
	s.do("GET", "/openapi.json", nil).into(t, 200, &doc)
	for path, methods := range doc.Paths {
		for method, o := range methods {
			o.method, o.path = strings.ToUpper(method), path
			ops = append(ops, o)
		}
	}
	slices.SortFunc(ops, func(a, b *operation) int {
		return cmp.Or(cmp.Compare(slices.Index(tagOrder, a.Tags[0]), slices.Index(tagOrder, b.Tags[0])), cmp.Compare(a.path, b.path), cmp.Compare(a.method, b.method))
	})
	return ops
}

// words are the generated lines of a route.
func (o *operation) words() string {
	var b strings.Builder
	b.WriteString(o.Summary + ".")
	switch {
	case o.Role == "admin":
		b.WriteString(" **Administrators.**")
	case o.Security == nil:
		b.WriteString(" Needs no key.")
	}
	b.WriteString("\n")
	for _, p := range o.Parameters {
		if p.In != "path" {
			fmt.Fprintf(&b, "- %s `%s`: %s\n", p.In, p.Name, p.Description)
		}
	}
	if o.Body != nil {
		for media := range o.Body.Content {
			must := ""
			if !o.Body.Required {
				must = ", may be left out"
			}
			fmt.Fprintf(&b, "- body: `%s`%s. %s\n", media, must, o.Body.Description)
		}
	}
	var good, bad []string
	for status, r := range o.Responses {
		if status[0] == '2' {
			for media := range r.Content {
				status += " `" + media + "`"
			}
			good = append(good, status)
		} else {
			bad = append(bad, status)
		}
	}
	slices.Sort(bad)
	fmt.Fprintf(&b, "- answers %s; errors %s\n", strings.Join(good, ", "), strings.Join(bad, ", "))
	return b.String()
}

var apiHeading = regexp.MustCompile("(?m)^### `([A-Z]+ [^`]+)`$")

// TestAPIDocs: docs/api.md has every route of openapi.json with what it says of
// it, and a request for each that works: all of them are sent to a server, uploads
// first and deletions last, and the server has counted a success on every route.
func TestAPIDocs(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	path := filepath.Join(root, "docs/api.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	requests := map[string]string{}
	marks := apiHeading.FindAllSubmatchIndex(page, -1)
	for i, m := range marks {
		end := len(page)
		if i+1 < len(marks) {
			end = marks[i+1][0]
		}
		_, rest, _ := strings.Cut(string(page[m[1]:end]), "```sh\n")
		block, _, ok := strings.Cut(rest, "```")
		if ok {
			requests[string(page[m[2]:m[3]])] = block
		}
	}
	key := keyFile(t, 'a')
	s := start(t, "", func(c *Config) { c.CaptureKey = key })
	ops := operations(t, s)
	head, _, found := strings.Cut(string(page), "<!-- routes -->\n")
	if !found {
		t.Fatal("docs/api.md has no line <!-- routes -->")
	}
	want, tag := head+"<!-- routes -->\n", ""
	for _, o := range ops {
		if o.Tags[0] != tag {
			tag = o.Tags[0]
			want += "\n## " + tag + "\n"
		}
		want += fmt.Sprintf("\n### `%s`\n\n%s", o.title(), o.words())
		if block, ok := requests[o.title()]; ok {
			want += "\n```sh\n" + block + "```\n"
		} else {
			t.Errorf("docs/api.md has no request for %s: add one under its heading", o.title())
		}
	}
	if want != string(page) {
		if !*updateAPI {
			t.Fatal("docs/api.md does not say what openapi.json does; run go test ./internal/app -run TestAPIDocs -update")
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := "set -euo pipefail\ncurl() { command curl --fail-with-body --show-error --silent --max-time 120 \"$@\"; echo; }\n"
	order := slices.Clone(ops)
	slices.SortStableFunc(order, func(a, b *operation) int { return cmp.Compare(turn(a), turn(b)) })
	for _, o := range order {
		script += "echo '--- " + o.title() + "'\n" + requests[o.title()]
	}
	script = strings.ReplaceAll(script, "localhost:8080", strings.TrimPrefix(s.base, "http://"))
	dir := t.TempDir()
	for name, b := range map[string][]byte{
		"news.zip": textModel(t), "calib.jsonl": texts(1, 40), "test.jsonl": texts(2, 40),
		"encoder.zip":  zipOf(t, map[string][]byte{"model.onnx": onnxBytes(t, encoderGraph()), "tokenizer.json": tokenizer(t)}),
		"reranker.zip": zipOf(t, map[string][]byte{"model.onnx": onnxBytes(t, rerankerGraph()), "tokenizer.json": tokenizer(t)}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out[max(0, len(out)-3000):])
	}
	metrics := string(s.do("GET", "/metrics", nil).body)
	for _, o := range ops {
		route := regexp.MustCompile(`\{([a-z]+)\}`).ReplaceAllString(o.path, ":$1")
		if !regexp.MustCompile(`(?m)^fewbit_http_requests_total\{code="2..",method="` + o.method + `",route="` + regexp.QuoteMeta(route) + `"\} [1-9]`).MatchString(metrics) {
			t.Errorf("the request of docs/api.md for %s did not reach it with success", o.title())
		}
	}
}

// turn orders the requests: what others need comes first, what removes it last.
func turn(o *operation) int {
	switch {
	case o.title() == "PUT /models/{model}" || o.title() == "PUT /datasets/{dataset}":
		return 0
	case o.title() == "POST /quantize":
		return 1
	case o.title() == "PUT /models/{model}/capture":
		return 2
	case o.title() == "DELETE /quantize/{id}":
		return 7
	case o.method == "DELETE" && o.path == "/models/{model}":
		return 9
	case o.method == "DELETE":
		return 8
	case strings.HasSuffix(o.path, "/capture/stop") || strings.HasSuffix(o.path, "/unload"):
		return 5
	case strings.HasPrefix(o.path, "/v2/trace/files") || strings.HasSuffix(o.path, "samples.npz") || strings.HasSuffix(o.path, "/load"):
		return 6
	case o.path == "/metrics":
		return 7
	}
	return 4
}

// encoderGraph gives one vector for each text.
func encoderGraph() *graph.Model {
	m := textGraph()
	g := m.Graph
	at := slices.IndexFunc(g.Nodes, func(n *graph.Node) bool { return n.Outputs[0] == "mean" })
	g.Nodes = g.Nodes[:at+1]
	g.Nodes[at].Outputs[0] = "sentence_embedding"
	g.Outputs = []*graph.Value{value("sentence_embedding", tensor.Float32, "batch", wordDims)}
	return m
}

// rerankerGraph gives one score for each text or pair.
func rerankerGraph() *graph.Model {
	m := textGraph()
	g := m.Graph
	g.Nodes[len(g.Nodes)-1].Outputs[0] = "all"
	g.Nodes = append(g.Nodes, graph.NewNode("", "ReduceMean", "/score", []string{"all", "last"}, []string{"score"}, graph.AttrInt("keepdims", 1)))
	g.Outputs = []*graph.Value{value("score", tensor.Float32, "batch", 1)}
	return m
}
