package http

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
)

func TestLoadVersions(t *testing.T) {
	for name, c := range map[string]struct {
		paths string // separated by spaces
		only  int
		want  string // versions and their files; or the error
	}{
		"one":                  {"1/model.onnx", 0, "1: model.onnx\n"},
		"in their order":       {"10/model.onnx 2/model.onnx", 0, "2: model.onnx\n10: model.onnx\n"},
		"for all versions":     {"1/model.onnx 2/model.onnx tokenizer.json 1_Pooling/config.json 2/tokenizer.json", 0, "1: 1_Pooling/config.json model.onnx tokenizer.json\n2: 1_Pooling/config.json model.onnx tokenizer.json\n"},
		"the version asked of": {"1/model.onnx 2/model.onnx 3/model.onnx", 2, "1: model.onnx\n2: model.onnx\n"},
		"another asked of":     {"1/model.onnx", 2, "of which there is no file"},
		"none":                 {"model.onnx", 0, "no file of a version"},
		"version 0":            {"0/model.onnx", 0, "version from 1"},
		"version 01":           {"01/model.onnx", 0, "version from 1"},
		"negative":             {"-1/model.onnx", 0, "version from 1"},
		"huge":                 {"99999999999999999999/model.onnx", 0, "no file of a version"},
		"above":                {"../model.onnx", 0, "version from 1"},
		"Triton's own text":    {"1/model.onnx config.pbtxt", 0, "parameter config"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &LoadParams{}
			for path := range strings.FieldsSeq(c.paths) {
				if err := p.File(filePrefix+path, []byte(path)); err != nil {
					t.Fatal(err)
				}
			}
			got := ""
			vs, err := p.versions(c.only)
			if err != nil {
				if !strings.Contains(err.Error(), c.want) {
					t.Error(err)
				}
				return
			}
			for _, v := range vs {
				var files []string
				for _, f := range []string{"1_Pooling/config.json", "model.onnx", "tokenizer.json"} {
					if r, ok := v.Files[f]; ok {
						files = append(files, f)
						b, _ := io.ReadAll(r)
						if s := string(b); s != f && !strings.HasSuffix(s, "/"+f) {
							t.Errorf("%s holds %s", f, s)
						}
					}
				}
				if len(files) != len(v.Files) {
					t.Errorf("%v", v.Files)
				}
				n, _ := json.Marshal(v.Number)
				got += string(n) + ": " + strings.Join(files, " ") + "\n"
			}
			if got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

func TestLoadConfig(t *testing.T) {
	for config, want := range map[string]any{
		`{}`: 0,
		`{"name":"m","platform":"onnxruntime_onnx","input":[{"name":"x","dims":[1]}],"dynamic_batching":{}}`: 0,
		`{"version_policy":{"specific":{"versions":[1,3,2]}}}`:                                               3,
		`{"version_policy":{"specific":{"versions":["4"]}}}`:                                                 4, // as protobuf writes 64-bit numbers
		`{"version_policy":{"latest":{"num_versions":1}}}`:                                                   0,
		`{"version_policy":{"specific":{"versions":[0]}}}`:                                                   "whole numbers from 1",
		`{"version_policy":{"specific":{"versions":[1e99]}}}`:                                                "whole numbers from 1",
		`{"version_policy":{"specific":{"versions":["x"]}}}`:                                                 "not a model configuration",
		`{"name":1}`:            "not a model configuration",
		`{"name":"other"}`:      "is for model",
		`{"platform":"tf"}`:     "platform",
		`{`:                     "bad JSON",
		`{} {}`:                 "end of the body",
		strings.Repeat("[", 99): "JSON object",
		`{"a":` + strings.Repeat("[", MaxJSONDepth+1) + strings.Repeat("]", MaxJSONDepth+1) + `}`: "deeper",
	} {
		n, err := checkConfig("m", []byte(config))
		if s, bad := want.(string); bad {
			if err == nil || !strings.Contains(err.Error(), s) || explain(err).status != 400 {
				t.Errorf("%.60s: %v, want %s", config, err, s)
			}
		} else if err != nil || n != want {
			t.Errorf("%.60s: %d, %v, want %v", config, n, err, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `{"parameters":{"config":"{\"backend\":\"onnxruntime\"}","file:1/model.onnx":"aGVsbG8="}}`,
		`{"parameters":{"file:1\/model.onnx":"aGk\u003d","file:tokenizer.json":"e30="}}`,
		`{"parameters":{"config":"{\"version_policy\":{\"specific\":{\"versions\":[\"2\"]}}}"}}`, `{"parameters":null}`, `{"parameters":{"file:../x/y":"%"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseLoad(&spooled{b: b})
		if err == nil && len(p.config) > 0 {
			_, err = checkConfig("m", p.config)
		}
		var vs []InlineVersion
		if err == nil && len(p.files) > 0 {
			vs, err = p.versions(0)
		}
		if err != nil {
			if e := explain(err); e.status != 400 {
				t.Fatalf("%d: %v", e.status, err)
			}
			return
		}
		last := 0
		for _, v := range vs {
			if v.Number <= last || v.Number > MaxLoadVersion {
				t.Fatalf("version %d after %d", v.Number, last)
			}
			last = v.Number
			for _, r := range v.Files {
				if _, err := io.Copy(io.Discard, r); err == nil && len(b) == 0 {
					t.Fatal("files of nothing")
				}
			}
		}
	})
}
