package task

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

const tokenizer = `{"normalizer":{"type":"BertNormalizer"},"pre_tokenizer":{"type":"BertPreTokenizer"},
	"post_processor":{"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]},
	"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,
	"vocab":{"[PAD]":9,"[UNK]":1,"[CLS]":2,"[SEP]":3,"a":4,"b":5}}}`

func dirWith(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func spec(ios ...engine.IO) engine.IOSpec { return engine.IOSpec{Inputs: ios} }

func ints(name string, dims ...int64) engine.IO {
	return engine.IO{Name: name, Type: tensor.Int64, Dims: dims}
}

func TestEncodeBatch(t *testing.T) {
	s := spec(ints("attention_mask", -1, -1), ints("input_ids", -1, -1), ints("token_type_ids", -1, -1), ints("position_ids", -1, -1))
	e, err := NewTextEncoder(s, dirWith(t, map[string]string{TokenizerFile: tokenizer}), 0)
	if err != nil {
		t.Fatal(err)
	}
	if e.MaxTokens() != DefaultMaxTokens || e.Inputs().Mask != "attention_mask" {
		t.Error(e.MaxTokens(), e.Inputs())
	}
	f, lens, err := e.Encode(Text{Text: "a b a"}, Text{Text: "b"}, Text{Text: "a", Pair: "b", HasPair: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.CheckFeeds(s, f); err != nil {
		t.Fatal(err)
	}
	want := map[string][]int64{
		"input_ids":      {2, 4, 5, 4, 3, 2, 5, 3, 9, 9, 2, 4, 3, 5, 3},
		"attention_mask": {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1},
		"token_type_ids": {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1},
		"position_ids":   {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4},
	}
	for name, w := range want {
		if got := tensor.View[int64](f[name]); !slices.Equal(got, w) || !slices.Equal(f[name].Dims, []int64{3, 5}) {
			t.Errorf("%s %v: %v, want %v", name, f[name].Dims, got, w)
		}
	}
	if !slices.Equal(lens, []int{5, 3, 5}) {
		t.Error(lens)
	}
	if _, _, err := e.Encode(); !errors.Is(err, engine.ErrInput) {
		t.Error("no texts", err)
	}
}

func TestTextEncoderRefused(t *testing.T) {
	good := spec(ints("input_ids", -1, -1))
	for name, c := range map[string]struct {
		spec  engine.IOSpec
		files map[string]string
		max   int
		err   error
		words string
	}{
		"no tokenizer":   {good, nil, 0, ErrNoTokenizer, "put the model's tokenizer.json"},
		"image":          {spec(engine.IO{Name: "x", Type: tensor.Float32, Dims: []int64{-1, 3, 8, 8}}), nil, 0, ErrNotText, `"x" is FP32[-1 3 8 8]`},
		"float ids":      {spec(engine.IO{Name: "input_ids", Type: tensor.Float32, Dims: []int64{-1, -1}}), nil, 0, ErrNotText, "FP32"},
		"no ids":         {spec(ints("attention_mask", -1, -1)), nil, 0, ErrNotText, "input_ids"},
		"twice":          {spec(ints("input_ids", -1, -1), ints("ids", -1, -1)), nil, 0, ErrNotText, `"ids"`},
		"two lengths":    {spec(ints("input_ids", -1, 8), ints("mask", -1, 9)), map[string]string{TokenizerFile: tokenizer}, 0, ErrNotText, "8 and 9"},
		"short":          {good, map[string]string{TokenizerFile: tokenizer}, 2, ErrConfig, "2 special"},
		"broken config":  {good, map[string]string{TokenizerFile: tokenizer, "config.json": "{"}, 0, ErrConfig, "config.json"},
		"broken labels?": {good, map[string]string{TokenizerFile: "{}"}, 0, nil, "tokenizer.json"},
	} {
		_, err := NewTextEncoder(c.spec, dirWith(t, c.files), c.max)
		if err == nil || c.err != nil && !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %v with %q", name, err, c.err, c.words)
		}
	}
	e, err := NewTextEncoder(spec(ints("input_ids", 2, -1)), dirWith(t, map[string]string{TokenizerFile: tokenizer}), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.Encode(Text{Text: "a"}); !errors.Is(err, engine.ErrInput) || !strings.Contains(err.Error(), "exactly 2") {
		t.Error("fixed batch:", err)
	}
}
