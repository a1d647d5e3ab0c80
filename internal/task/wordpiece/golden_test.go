package wordpiece

import (
	"compress/gzip"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// goldenFlag names a larger golden file made by testdata/gen_golden.py, and
// tokenizerFlag the tokenizer.json it was made with (gen_golden.py --tokenizer).
var (
	goldenFlag    = flag.String("golden", "testdata/golden.json.gz", "golden file of testdata/gen_golden.py")
	tokenizerFlag = flag.String("tokenizer", "", "tokenizer.json of the golden file")
)

type goldenFile struct {
	Library string
	Texts   []string
	Cases   []goldenCase
}

type goldenCase struct {
	Name      string
	Vocab     []string // tokens by id; null: that of the case before
	Tokenizer map[string]any
	IDs       [][]int64
	Cut       []json.RawMessage // [maxLen, ids]
	Pairs     []json.RawMessage // [a, b, maxLen, ids, type ids]
	// Left and LeftPairs are the same, cut on the left.
	Left      []json.RawMessage
	LeftPairs []json.RawMessage `json:"left_pairs"`
}

func readGolden(t testing.TB, path string) goldenFile {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var g goldenFile
	if err := json.NewDecoder(z).Decode(&g); err != nil {
		t.Fatal(err)
	}
	return g
}

func unpack(t *testing.T, raw json.RawMessage, into ...any) {
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil || len(parts) != len(into) {
		t.Fatalf("golden entry %s: %v", raw, err)
	}
	for i, p := range parts {
		if err := json.Unmarshal(p, into[i]); err != nil {
			t.Fatal(err)
		}
	}
}

// maxShown bounds the differences printed of one case.
const maxShown = 10

// checkCase compares every id with the library's.
func checkCase(t *testing.T, tok *Tokenizer, texts []string, c goldenCase) {
	bad := 0
	differ := func(what string, got, want any) {
		t.Helper()
		if bad++; bad <= maxShown {
			t.Errorf("%s\n got  %v\n want %v", what, got, want)
		}
	}
	for i, want := range c.IDs {
		if got := tok.Encode(texts[i], 0); !slices.Equal(got, want) {
			differ("text "+quote(texts[i]), got, want)
		}
	}
	for i, raw := range c.Cut {
		var n int
		var want []int64
		unpack(t, raw, &n, &want)
		if got := tok.EncodeSingle(texts[i], n, false); !slices.Equal(got.IDs, want) || len(got.TypeIDs) != len(got.IDs) {
			differ("cut text "+quote(texts[i]), got, want)
		}
	}
	for i, raw := range c.Left {
		var n int
		var want []int64
		unpack(t, raw, &n, &want)
		if got := tok.EncodeSingle(texts[i], n, true); !slices.Equal(got.IDs, want) || len(got.TypeIDs) != len(got.IDs) {
			differ("text cut on the left "+quote(texts[i]), got, want)
		}
	}
	for k, raw := range slices.Concat(c.Pairs, c.LeftPairs) {
		var i, j, n int
		var ids, types []int64
		unpack(t, raw, &i, &j, &n, &ids, &types)
		if got := tok.EncodePair(texts[i], texts[j], n, k >= len(c.Pairs)); !slices.Equal(got.IDs, ids) || !slices.Equal(got.TypeIDs, types) {
			differ("pair "+quote(texts[i])+" + "+quote(texts[j]), got, Encoding{ids, types})
		}
	}
	t.Logf("compared %d texts, %d cut, %d pairs: %d differ", len(c.IDs), len(c.Cut)+len(c.Left), len(c.Pairs)+len(c.LeftPairs), bad)
	if bad > 0 {
		t.Errorf("%d of %d differ", bad, len(c.IDs)+len(c.Cut)+len(c.Pairs))
	}
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// parseCase builds the tokenizer of a golden case; vocab is id -> token.
func parseCase(t testing.TB, c goldenCase, vocab []string) *Tokenizer {
	ids := map[string]int{}
	for i, tok := range vocab {
		ids[tok] = i
	}
	c.Tokenizer["model"].(map[string]any)["vocab"] = ids
	b, err := json.Marshal(c.Tokenizer)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestGolden(t *testing.T) {
	g := readGolden(t, *goldenFlag)
	var vocab []string
	for _, c := range g.Cases {
		t.Run(c.Name, func(t *testing.T) {
			if c.Vocab != nil {
				vocab = c.Vocab
			}
			var tok *Tokenizer
			if c.Tokenizer == nil {
				var err error
				if tok, err = Load(*tokenizerFlag); err != nil {
					t.Fatal(err)
				}
			} else {
				tok = parseCase(t, c, vocab)
			}
			checkCase(t, tok, g.Texts, c)
		})
	}
}

// minilm is a fetched real tokenizer.json (uncased BERT vocabulary).
const minilm = "../../../.deps/models/minilm-fused/tokenizer.json"

func TestGoldenMiniLM(t *testing.T) {
	if _, err := os.Stat(minilm); err != nil {
		t.Skipf("%s is missing: run `make deps`", filepath.Clean(minilm))
	}
	tok, err := Load(minilm)
	if err != nil {
		t.Fatal(err)
	}
	g := readGolden(t, "testdata/golden_minilm.json.gz")
	checkCase(t, tok, g.Texts, g.Cases[0])
}
