package data

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/task"
	"github.com/fewbit/fewbit/internal/tensor"
)

const modelDir = "testdata/model" // 12 tokens: see its tokenizer.json

func textOptions() Options { return Options{Spec: textSpec, ModelDir: modelDir} }

func TestJSONL(t *testing.T) {
	p := write(t, "a.jsonl", []byte("\ufeff"+`{"text":"Hello worlds!","label":"pos","other":[1,2]}`+"\r\n\n  \n"+`{"text":"bad","label":"neg","text_pair":"good."}`+"\n"+`{"label":"pos","text":""}`))
	d := open(t, p, textOptions())
	if d.Kind() != "jsonl" || d.Len() != 3 || !d.Labelled() || !slices.Equal(d.LabelNames(), []string{"neg", "pos"}) {
		t.Fatalf("%s, %d, %v, %v", d.Kind(), d.Len(), d.Labelled(), d.LabelNames())
	}
	want := []struct {
		id         string
		label      int
		ids, types []int64
	}{
		{"line 1", 1, []int64{2, 4, 5, 6, 11, 3}, []int64{0, 0, 0, 0, 0, 0}},
		{"line 4", 0, []int64{2, 8, 3, 7, 10, 3}, []int64{0, 0, 0, 1, 1, 1}},
		{"line 5", 1, []int64{2, 3}, []int64{0, 0}},
	}
	for pass := range 2 {
		for i, s := range all(t, d) {
			w := want[i]
			if err := engine.CheckFeeds(textSpec, s.Feeds); err != nil {
				t.Fatal(err)
			}
			ids, types, mask := tensor.View[int64](s.Feeds["input_ids"]), tensor.View[int64](s.Feeds["token_type_ids"]), tensor.View[int64](s.Feeds["attention_mask"])
			if s.ID != w.id || s.Label != w.label || !s.HasLabel || s.Tokens != len(w.ids) || !slices.Equal(ids, w.ids) || !slices.Equal(types, w.types) || slices.Min(mask) != 1 {
				t.Errorf("pass %d: %s label %d: %v %v %v, want %+v", pass, s.ID, s.Label, ids, types, mask, w)
			}
		}
		if err := d.Reset(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestJSONLForms(t *testing.T) {
	p := write(t, "a", []byte(`{"text":"hello world hello world"}`)) // no extension: told by its contents
	t.Run("cut", func(t *testing.T) {
		o := textOptions()
		o.MaxTokens = 4
		s := all(t, open(t, p, o))[0]
		if got := tensor.View[int64](s.Feeds["input_ids"]); !slices.Equal(got, []int64{2, 4, 5, 3}) || s.HasLabel {
			t.Errorf("%v", got)
		}
	})
	t.Run("fixed length and other names", func(t *testing.T) {
		o := textOptions()
		o.Spec = engine.IOSpec{Inputs: []engine.IO{
			{Name: "Mask:0", Type: tensor.Int32, Dims: []int64{1, 8}}, {Name: "input_word_ids", Type: tensor.Int32, Dims: []int64{1, 8}}, {Name: "position_ids", Type: tensor.Int64, Dims: []int64{1, 8}},
		}}
		s := all(t, open(t, p, o))[0]
		if err := engine.CheckFeeds(o.Spec, s.Feeds); err != nil {
			t.Fatal(err)
		}
		if got := tensor.View[int32](s.Feeds["input_word_ids"]); !slices.Equal(got, []int32{2, 4, 5, 4, 5, 3, 0, 0}) || s.Tokens != 6 {
			t.Errorf("ids %v", got)
		}
		if got := tensor.View[int32](s.Feeds["Mask:0"]); !slices.Equal(got, []int32{1, 1, 1, 1, 1, 1, 0, 0}) {
			t.Errorf("mask %v", got)
		}
	})
	t.Run("limit beside the model", func(t *testing.T) {
		dir := t.TempDir()
		copyFile(t, filepath.Join(modelDir, task.TokenizerFile), filepath.Join(dir, task.TokenizerFile))
		for name, text := range map[string]string{"config.json": `{"max_position_embeddings":5}`, "tokenizer_config.json": `{"model_max_length":1e30}`} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := all(t, open(t, p, Options{Spec: textSpec, ModelDir: dir}))[0]
		if s.Tokens != 5 {
			t.Errorf("%d tokens", s.Tokens)
		}
	})
	t.Run("labels.txt", func(t *testing.T) {
		dir := t.TempDir()
		copyFile(t, filepath.Join(modelDir, task.TokenizerFile), filepath.Join(dir, task.TokenizerFile))
		if err := os.WriteFile(filepath.Join(dir, task.LabelsFile), []byte("zebra\nant\n\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		o := Options{Spec: textSpec, ModelDir: dir}
		d := open(t, write(t, "a.jsonl", []byte(`{"text":"a","label":"ant"}`+"\n"+`{"text":"a","label":"zebra"}`)), o)
		if s := all(t, d); s[0].Label != 1 || s[1].Label != 0 || !slices.Equal(d.LabelNames(), []string{"zebra", "ant"}) {
			t.Error(s[0].Label, s[1].Label, d.LabelNames())
		}
		refuse(t, write(t, "a.jsonl", []byte(`{"text":"a","label":"bee"}`)), o, ErrLabel, "line 1", `"bee"`, "labels.txt")
		refuse(t, write(t, "a.jsonl", []byte(`{"text":"a","label":2}`)), o, ErrLabel, "line 1", "0 to 1")
	})
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestJSONLRefused(t *testing.T) {
	ok := `{"text":"a","label":1}` + "\n"
	for name, c := range map[string]struct {
		text  string
		err   error
		words []string
	}{
		"not json":       {ok + "{hello}", ErrFormat, []string{"a.jsonl line 2", "JSON"}},
		"array":          {ok + "[1]", ErrFormat, []string{"line 2"}},
		"cut off":        {ok + `{"text":"a","la`, ErrFormat, []string{"line 2"}},
		"no text":        {`{"label":1}`, ErrFormat, []string{"line 1", `"text"`}},
		"text number":    {`{"text":1}`, ErrFormat, []string{"line 1", `"text" is a number`, "expected a string"}},
		"two objects":    {`{"text":"a"}{"text":"b"}`, ErrFormat, []string{"line 1"}},
		"label float":    {`{"text":"a","label":1.5}`, ErrLabel, []string{"line 1", "1.5"}},
		"label list":     {`{"text":"a","label":[1]}`, ErrLabel, []string{"line 1"}},
		"label negative": {`{"text":"a","label":-1}`, ErrLabel, []string{"-1"}},
		"label huge":     {`{"text":"a","label":99999999999}`, ErrLabel, []string{"99999999999"}},
		"label empty":    {`{"text":"a","label":""}`, ErrLabel, []string{"line 1"}},
		"mixed labels":   {ok + `{"text":"a","label":"x"}`, ErrLabel, []string{"line 2", "numbers"}},
		"mixed labels 2": {`{"text":"a","label":"x"}` + "\n" + ok, ErrLabel, []string{"line 2", "names"}},
		"some labels":    {ok + `{"text":"a"}`, ErrLabel, []string{"line 2", "label all lines or none"}},
		"long line":      {ok + `{"text":"` + strings.Repeat("a", maxLineBytes) + `"}`, ErrTooLarge, []string{"line 2"}},
		"blank lines":    {"{}"[:0] + "\n\n", ErrFormat, nil},
	} {
		t.Run(name, func(t *testing.T) {
			refuse(t, write(t, "a.jsonl", []byte(c.text)), textOptions(), c.err, c.words...)
		})
	}
	t.Run("no labels", func(t *testing.T) {
		d := open(t, write(t, "a.jsonl", []byte(`{"text":"a","label":null}`)), textOptions())
		if err := RequireLabels(d); !errors.Is(err, ErrNoLabels) || !strings.Contains(err.Error(), `"label"`) {
			t.Error(err)
		}
	})
	t.Run("no tokenizer", func(t *testing.T) {
		refuse(t, write(t, "a.jsonl", []byte(ok)), Options{Spec: textSpec, ModelDir: t.TempDir()}, task.ErrNoTokenizer, "tokenizer.json")
	})
	t.Run("no model folder", func(t *testing.T) {
		refuse(t, write(t, "a.jsonl", []byte(ok)), Options{Spec: textSpec}, task.ErrNoTokenizer, "folder")
	})
	t.Run("image model", func(t *testing.T) {
		refuse(t, write(t, "a.jsonl", []byte(ok)), Options{Spec: pixelSpec, ModelDir: modelDir}, ErrMismatch, "holds texts", `"pixels"`)
	})
	t.Run("changed while open", func(t *testing.T) {
		p := write(t, "a.jsonl", []byte(ok+ok))
		d := open(t, p, textOptions())
		if err := os.Truncate(p, 30); err != nil {
			t.Fatal(err)
		}
		_, err := d.Next(t.Context())
		if err == nil {
			_, err = d.Next(t.Context())
		}
		if !errors.Is(err, ErrFormat) {
			t.Error(err)
		}
	})
}
