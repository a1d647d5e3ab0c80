package wordpiece

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// small returns a tokenizer.json as a tree that a test may change.
func small() map[string]any {
	var m map[string]any
	err := json.Unmarshal([]byte(`{"added_tokens":[{"id":2,"content":"[CLS]","special":true},{"id":3,"content":"[SEP]","special":true}],
		"normalizer":{"type":"BertNormalizer"},"pre_tokenizer":{"type":"BertPreTokenizer"},
		"post_processor":{"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]},
		"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,
		"vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"a":4,"##b":5,"ab":6}}}`), &m)
	if err != nil {
		panic(err)
	}
	return m
}

// set changes the value at a dotted path; nil deletes it.
func set(m map[string]any, path string, v any) {
	keys := strings.Split(path, ".")
	for _, k := range keys[:len(keys)-1] {
		m = m[k].(map[string]any)
	}
	if last := keys[len(keys)-1]; v == nil {
		delete(m, last)
	} else {
		m[last] = v
	}
}

func TestParseRefused(t *testing.T) {
	type object = map[string]any
	for name, c := range map[string]struct {
		path  string
		value any
		err   error
		words string
	}{
		"BPE":              {"model.type", "BPE", ErrUnsupported, `"BPE"`},
		"Unigram":          {"model", object{"type": "Unigram", "vocab": []any{[]any{"a", 0.5}}}, ErrUnsupported, `"Unigram"`},
		"WordLevel":        {"model.type", "WordLevel", ErrUnsupported, `"WordLevel"`},
		"untyped BPE":      {"model", object{"vocab": object{"a": 1}, "merges": []any{}}, ErrUnsupported, `"unnamed"`},
		"no model":         {"model", nil, ErrFormat, "not a tokenizer.json"},
		"no normalizer":    {"normalizer", nil, ErrUnsupported, "normalizer"},
		"other normalizer": {"normalizer", object{"type": "NFC"}, ErrUnsupported, `"NFC"`},
		"sequence":         {"normalizer", object{"type": "Sequence", "normalizers": []any{}}, ErrUnsupported, `"Sequence"`},
		"pre-tokenizer":    {"pre_tokenizer", object{"type": "Metaspace"}, ErrUnsupported, `"Metaspace"`},
		"post-processor":   {"post_processor", object{"type": "RobertaProcessing"}, ErrUnsupported, `"RobertaProcessing"`},
		"single word":      {"added_tokens", []any{object{"id": 2, "content": "[CLS]", "single_word": true}}, ErrUnsupported, "single_word"},
		"empty vocabulary": {"model.vocab", object{}, ErrFormat, "0 tokens"},
		"vocabulary list":  {"model.vocab", []any{"a"}, ErrFormat, "model"},
		"negative id":      {"model.vocab", object{"[UNK]": 1, "x": -1}, ErrFormat, `"x"`},
		"huge id":          {"model.vocab", object{"[UNK]": 1, "x": 1 << 40}, ErrFormat, `"x"`},
		"float id":         {"model.vocab", object{"[UNK]": 1, "x": 1.5}, ErrFormat, "model"},
		"long token":       {"model.vocab", object{"[UNK]": 1, strings.Repeat("x", maxTokenBytes+1): 2}, ErrFormat, "bytes"},
		"no unknown":       {"model.unk_token", "[OOV]", ErrFormat, `"[OOV]"`},
		"no prefix":        {"model.continuing_subword_prefix", "", ErrUnsupported, "prefix"},
		"word length":      {"model.max_input_chars_per_word", 0, ErrFormat, "max_input_chars_per_word"},
		"added id":         {"added_tokens", []any{object{"id": 7, "content": "[CLS]"}}, ErrFormat, "7"},
		"added empty":      {"added_tokens", []any{object{"id": 7, "content": ""}}, ErrFormat, "added token"},
		"added negative":   {"added_tokens", []any{object{"id": -7, "content": "x"}}, ErrFormat, "-7"},
		"cls":              {"post_processor.cls", []any{"[CLS]"}, ErrFormat, "cls"},
		"cls id":           {"post_processor.cls", []any{"[CLS]", -1}, ErrFormat, "cls"},
		"template special": {"post_processor", object{"type": "TemplateProcessing", "single": []any{object{"SpecialToken": object{"id": "[X]", "type_id": 0}}}}, ErrFormat, `"[X]"`},
		"template twice":   {"post_processor", object{"type": "TemplateProcessing", "single": []any{object{"Sequence": object{"id": "A"}}, object{"Sequence": object{"id": "A"}}}}, ErrFormat, "once"},
		"template empty":   {"post_processor", object{"type": "TemplateProcessing"}, ErrFormat, "once"},
		"template piece":   {"post_processor", object{"type": "TemplateProcessing", "single": []any{object{}}}, ErrFormat, "neither"},
		"template ids":     {"post_processor", object{"type": "TemplateProcessing", "special_tokens": object{"x": object{"ids": []any{}}}}, ErrFormat, `"x"`},
		"pad id":           {"padding", object{"pad_id": -1}, ErrFormat, "pad_id"},
	} {
		t.Run(name, func(t *testing.T) {
			m := small()
			set(m, c.path, c.value)
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(b)
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want %v with %q", err, c.err, c.words)
			}
		})
	}
	for _, text := range []string{"", "{", "[]", "null", `"x"`, "\x00", strings.Repeat("[", 100000)} {
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrFormat) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "tokenizer.json")
	if _, err := Load(p); !errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), dir) {
		t.Errorf("missing: %v", err)
	}
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(MaxFileBytes + 1); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := Load(p); !errors.Is(err, ErrFormat) {
		t.Errorf("too large: %v", err)
	}
}

func TestDefaults(t *testing.T) {
	m := small()
	set(m, "model.type", nil) // as files of 2020 have it
	set(m, "post_processor", nil)
	b, _ := json.Marshal(m)
	tok, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("ab aB abb x [SEP]", 0); !slices.Equal(got, []int64{6, 6, 6, 5, 1, 3}) {
		t.Errorf("%v", got)
	}
	if tok.PadID() != 0 || tok.VocabSize() != 7 || !tok.HasPairs() {
		t.Error(tok.PadID(), tok.VocabSize(), tok.HasPairs())
	}
	if e := tok.EncodePair("a", "ab", 0, false); !slices.Equal(e.IDs, []int64{4, 6}) || !slices.Equal(e.TypeIDs, []int64{0, 1}) {
		t.Errorf("%+v", e)
	}
}

// Invalid UTF-8 is dropped like U+FFFD, and never panics.
func TestInvalidUTF8(t *testing.T) {
	b, _ := json.Marshal(small())
	tok, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("a\xff\xc3b \xed\xa0\x80a", 0); !slices.Equal(got, []int64{2, 6, 4, 3}) {
		t.Errorf("%v", got)
	}
}

func TestLongRuns(t *testing.T) {
	b, _ := json.Marshal(small())
	tok, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{strings.Repeat("a", 1<<18), strings.Repeat("\u0301\u0323", 1<<16), strings.Repeat("[", 1<<18), strings.Repeat("[CLS]", 1<<15), strings.Repeat("\u0f73", 1<<16)} {
		if got := tok.Encode("ab "+s, 8); len(got) > 8 || got[1] != 6 {
			t.Errorf("%d ids", len(got))
		}
	}
}

func FuzzEncode(f *testing.F) {
	g := readGolden(f, "testdata/golden.json.gz")
	var toks []*Tokenizer
	for _, c := range g.Cases {
		toks = append(toks, parseCase(f, c, g.Cases[0].Vocab))
	}
	for _, s := range g.Texts[:60] {
		f.Add(s, "b", 9)
	}
	f.Fuzz(func(t *testing.T, a, b string, n int) {
		n = n % 64
		for _, tok := range toks {
			full := tok.EncodeSingle(a, 0, false)
			for _, id := range full.IDs {
				if id < 0 || int(id) >= tok.VocabSize() {
					t.Fatalf("id %d of %d", id, tok.VocabSize())
				}
			}
			if len(full.IDs) != len(full.TypeIDs) {
				t.Fatal("type ids of another length")
			}
			if n > 0 {
				cut := tok.Encode(a, n)
				if len(cut) > max(n, tok.Special(false)) {
					t.Fatalf("%d ids, at most %d", len(cut), n)
				}
				// Cutting keeps a prefix of the text's tokens.
				body := len(cut) - tok.Special(false)
				if tok.Special(false) == 2 && !slices.Equal(cut[1:1+body], full.IDs[1:1+body]) {
					t.Fatalf("cut to %v, of %v", cut, full.IDs)
				}
			}
			p := tok.EncodePair(a, b, max(n, 0), false)
			if len(p.IDs) != len(p.TypeIDs) || n > 0 && len(p.IDs) > max(n, tok.Special(true)) {
				t.Fatalf("pair of %d ids, at most %d", len(p.IDs), n)
			}
		}
		if !utf8.ValidString(string(toks[0].norm.append(nil, a))) {
			t.Fatal("normalized text is not UTF-8")
		}
	})
}

func FuzzParse(f *testing.F) {
	b, _ := json.Marshal(small())
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		tok.Encode("Hello ab [CLS] wörld 你好", 16)
		if tok.HasPairs() {
			tok.EncodePair("ab", "b", 5, true)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	tok, err := Load(minilm)
	if err != nil {
		b.Skipf("%s is missing: run `make deps`", filepath.Clean(minilm))
	}
	text := strings.Repeat("Ad sales boost Time Warner profit: quarterly earnings at the media giant jumped 76% to $1.13bn for the three months to December. ", 8)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Encode(text, 0)
	}
}
