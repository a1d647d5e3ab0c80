package wordpiece

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"unicode/utf8"
)

// Errors of this package, to be tested with errors.Is.
var (
	// ErrFormat: the file is not a tokenizer.json that can be read.
	ErrFormat = errors.New("bad tokenizer file")
	// ErrUnsupported: the file asks for a kind of tokenizer or a setting that
	// this package does not implement; the text names it.
	ErrUnsupported = errors.New("unsupported tokenizer")
)

// Limits of what is accepted from a tokenizer.json.
const (
	MaxFileBytes   = 64 << 20 // the largest WordPiece vocabularies are near 5 MB
	maxVocab       = 2 << 20  // tokens
	maxTokenBytes  = 1 << 10  // bytes of one token
	maxAdded       = 1 << 16  // added tokens
	maxTemplate    = 64       // pieces of one post-processing template
	maxTemplateIDs = 64       // ids of one special token of a template
	maxWordChars   = 1 << 16  // max_input_chars_per_word
	maxTokenID     = 1<<31 - 1
)

// Load reads the tokenizer.json at path.
func Load(path string) (*Tokenizer, error) {
	name := filepath.Base(path) // errors travel to clients: never the whole path
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing: %w", name, os.ErrNotExist)
		}
		return nil, fmt.Errorf("%s cannot be opened", name)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > MaxFileBytes {
		return nil, fmt.Errorf("%s: %w: %d bytes, at most %d", name, ErrFormat, info.Size(), MaxFileBytes)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read", name)
	}
	t, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return t, nil
}

type fileJSON struct {
	AddedTokens   []addedJSON     `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Padding       *struct {
		PadID    *int64 `json:"pad_id"`
		PadToken string `json:"pad_token"`
	} `json:"padding"`
	Model json.RawMessage `json:"model"`
}

type addedJSON struct {
	ID         int64  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// Parse reads the bytes of a tokenizer.json: a WordPiece model with
// BertNormalizer, BertPreTokenizer and TemplateProcessing, BertProcessing or no
// post-processor. The file's truncation and padding are ignored: the caller
// of Encode says the length. Anything else is ErrUnsupported by name.
func Parse(b []byte) (*Tokenizer, error) {
	if len(b) > MaxFileBytes {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrFormat, MaxFileBytes)
	}
	var f fileJSON
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	t := &Tokenizer{padID: -1, special: map[int32]bool{}}
	for _, step := range []func(*fileJSON) error{t.readModel, t.readNormalizer, t.readPreTokenizer, t.readAdded, t.readPostProcessor, t.readPadding} {
		if err := step(&f); err != nil {
			return nil, err
		}
	}
	addedTokens := f.AddedTokens // not all of f: it would be kept
	t.names = sync.OnceValue(func() map[int32]string {
		names := make(map[int32]string, len(t.first)+len(addedTokens))
		for token, id := range t.first {
			names[id] = token
		}
		for _, a := range addedTokens {
			names[int32(a.ID)] = a.Content
		}
		return names
	})
	return t, nil
}

// kind returns the "type" of a section: "" when the section is null or absent.
func kind(section string, raw json.RawMessage) (string, error) {
	var k struct {
		Type string `json:"type"`
	}
	if len(raw) == 0 || string(raw) == "null" {
		return "", nil
	}
	if err := json.Unmarshal(raw, &k); err != nil {
		return "", fmt.Errorf("%w: section %q: %w", ErrFormat, section, err)
	}
	if k.Type == "" {
		return "unnamed", nil
	}
	return k.Type, nil
}

func unsupported(section, got, want string) error {
	if got == "" {
		got = "none"
	}
	return fmt.Errorf("%w: %s is %q, only %s can be used; leave the file out and give token ids instead of texts", ErrUnsupported, section, got, want)
}

func (t *Tokenizer) readModel(f *fileJSON) error {
	k, err := kind("model", f.Model)
	if err != nil {
		return err
	}
	var m struct {
		Unk    string           `json:"unk_token"`
		Prefix *string          `json:"continuing_subword_prefix"`
		Max    *int             `json:"max_input_chars_per_word"`
		Vocab  map[string]int64 `json:"vocab"`
	}
	// Files of before 2021 leave the type out; these two settings are WordPiece's alone.
	if k == "unnamed" {
		var probe map[string]json.RawMessage
		if json.Unmarshal(f.Model, &probe) == nil && probe["max_input_chars_per_word"] != nil && probe["continuing_subword_prefix"] != nil {
			k = "WordPiece"
		}
	}
	if k == "" {
		return fmt.Errorf(`%w: it has no "model" section, so this is not a tokenizer.json`, ErrFormat)
	}
	if k != "WordPiece" {
		return unsupported("model", k, "WordPiece (BERT and its kin)")
	}
	if err := json.Unmarshal(f.Model, &m); err != nil {
		return fmt.Errorf("%w: model: %w", ErrFormat, err)
	}
	if len(m.Vocab) == 0 || len(m.Vocab) > maxVocab {
		return fmt.Errorf("%w: the vocabulary has %d tokens, expected 1 to %d", ErrFormat, len(m.Vocab), maxVocab)
	}
	prefix := "##"
	if m.Prefix != nil {
		prefix = *m.Prefix
	}
	t.maxChars = 100
	if m.Max != nil {
		t.maxChars = *m.Max
	}
	if t.maxChars < 1 || t.maxChars > maxWordChars {
		return fmt.Errorf("%w: max_input_chars_per_word is %d, expected 1 to %d", ErrFormat, t.maxChars, maxWordChars)
	}
	if prefix == "" || len(prefix) > maxTokenBytes {
		return unsupported("continuing_subword_prefix", prefix, `a prefix such as "##"`)
	}
	t.first = make(map[string]int32, len(m.Vocab))
	t.rest = make(map[string]int32, len(m.Vocab)/4)
	for tok, id := range m.Vocab {
		if id < 0 || id > maxTokenID {
			return fmt.Errorf("%w: token %.40q has id %d, expected 0 to %d", ErrFormat, tok, id, maxTokenID)
		}
		if len(tok) > maxTokenBytes {
			return fmt.Errorf("%w: token %.40q... has %d bytes, at most %d", ErrFormat, tok, len(tok), maxTokenBytes)
		}
		t.first[tok] = int32(id)
		t.maxFirst = max(t.maxFirst, len(tok))
		if cont, ok := strings.CutPrefix(tok, prefix); ok && cont != "" {
			t.rest[cont] = int32(id)
			t.maxRest = max(t.maxRest, len(cont))
		}
		t.size = max(t.size, int(id)+1)
	}
	unk, ok := t.first[m.Unk]
	if !ok {
		return fmt.Errorf("%w: the unknown token %.40q is not in the vocabulary", ErrFormat, m.Unk)
	}
	t.unk = unk
	return nil
}

func (t *Tokenizer) readNormalizer(f *fileJSON) error {
	k, err := kind("normalizer", f.Normalizer)
	if err != nil {
		return err
	}
	if k != "BertNormalizer" {
		return unsupported("normalizer", k, "BertNormalizer")
	}
	n := struct {
		Clean   *bool `json:"clean_text"`
		Chinese *bool `json:"handle_chinese_chars"`
		Strip   *bool `json:"strip_accents"`
		Lower   *bool `json:"lowercase"`
	}{}
	if err := json.Unmarshal(f.Normalizer, &n); err != nil {
		return fmt.Errorf("%w: normalizer: %w", ErrFormat, err)
	}
	or := func(b *bool, d bool) bool {
		if b == nil {
			return d
		}
		return *b
	}
	t.norm = normalizer{cleanText: or(n.Clean, true), chinese: or(n.Chinese, true), lowercase: or(n.Lower, true)}
	t.norm.stripAccents = or(n.Strip, t.norm.lowercase)
	return nil
}

func (t *Tokenizer) readPreTokenizer(f *fileJSON) error {
	k, err := kind("pre_tokenizer", f.PreTokenizer)
	if err != nil {
		return err
	}
	if k != "BertPreTokenizer" {
		return unsupported("pre_tokenizer", k, "BertPreTokenizer")
	}
	return nil
}

func (t *Tokenizer) readAdded(f *fileJSON) error {
	if len(f.AddedTokens) > maxAdded {
		return fmt.Errorf("%w: %d added tokens, at most %d", ErrFormat, len(f.AddedTokens), maxAdded)
	}
	seen := map[string]bool{}
	for _, a := range f.AddedTokens {
		if a.Content == "" || len(a.Content) > maxTokenBytes || a.ID < 0 || a.ID > maxTokenID || !utf8.ValidString(a.Content) {
			return fmt.Errorf("%w: added token %.40q with id %d", ErrFormat, a.Content, a.ID)
		}
		if a.SingleWord {
			return fmt.Errorf("%w: added token %.40q has single_word set, which is not implemented; set it to false", ErrUnsupported, a.Content)
		}
		if id, ok := t.first[a.Content]; ok && int64(id) != a.ID {
			return fmt.Errorf("%w: added token %.40q has id %d, but %d in the vocabulary", ErrFormat, a.Content, a.ID, id)
		}
		if seen[a.Content] {
			continue
		}
		seen[a.Content] = true
		t.size = max(t.size, int(a.ID)+1)
		if a.Special {
			t.special[int32(a.ID)] = true
		}
		tok := added{text: a.Content, id: int32(a.ID), lstrip: a.LStrip, rstrip: a.RStrip}
		if a.Normalized {
			tok.text = string(t.norm.append(nil, a.Content))
			if tok.text != "" {
				t.addedNorm.add(tok)
			}
		} else {
			t.addedRaw.add(tok)
		}
	}
	t.addedRaw.done()
	t.addedNorm.done()
	return nil
}

func (t *Tokenizer) readPostProcessor(f *fileJSON) error {
	k, err := kind("post_processor", f.PostProcessor)
	if err != nil {
		return err
	}
	switch k {
	case "":
		t.single = []piece{{sequence: 'A'}}
		t.pair = []piece{{sequence: 'A'}, {sequence: 'B', typeID: 1}}
		return nil
	case "BertProcessing":
		return t.readBertProcessing(f.PostProcessor)
	case "TemplateProcessing":
		return t.readTemplate(f.PostProcessor)
	}
	return unsupported("post_processor", k, "TemplateProcessing or BertProcessing")
}

func (t *Tokenizer) readBertProcessing(raw json.RawMessage) error {
	var p struct{ Sep, Cls []json.RawMessage }
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("%w: post_processor: %w", ErrFormat, err)
	}
	var ids [2]int32
	for i, tok := range [][]json.RawMessage{p.Cls, p.Sep} {
		if len(tok) != 2 || json.Unmarshal(tok[1], &ids[i]) != nil || ids[i] < 0 {
			return fmt.Errorf(`%w: post_processor: expected "cls" and "sep" as [token, id]`, ErrFormat)
		}
		t.size = max(t.size, int(ids[i])+1)
	}
	cls, sep := []int32{ids[0]}, []int32{ids[1]}
	t.single = []piece{{ids: cls}, {sequence: 'A'}, {ids: sep}}
	t.pair = []piece{{ids: cls}, {sequence: 'A'}, {ids: sep}, {sequence: 'B', typeID: 1}, {ids: sep, typeID: 1}}
	return nil
}

type pieceJSON struct {
	Special *struct {
		ID     string `json:"id"`
		TypeID int64  `json:"type_id"`
	} `json:"SpecialToken"`
	Sequence *struct {
		ID     string `json:"id"`
		TypeID int64  `json:"type_id"`
	} `json:"Sequence"`
}

func (t *Tokenizer) readTemplate(raw json.RawMessage) error {
	var p struct {
		Single, Pair []pieceJSON
		Special      map[string]struct {
			IDs []int32 `json:"ids"`
		} `json:"special_tokens"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("%w: post_processor: %w", ErrFormat, err)
	}
	for name, s := range p.Special {
		if len(s.IDs) == 0 || len(s.IDs) > maxTemplateIDs || slices.Min(s.IDs) < 0 {
			return fmt.Errorf("%w: post_processor: special token %.40q has ids %v", ErrFormat, name, s.IDs)
		}
		t.size = max(t.size, int(slices.Max(s.IDs))+1)
	}
	build := func(what string, in []pieceJSON, sequences string) ([]piece, error) {
		if len(in) > maxTemplate {
			return nil, fmt.Errorf("%w: post_processor: template %q has %d pieces, at most %d", ErrFormat, what, len(in), maxTemplate)
		}
		var out []piece
		seen := ""
		for _, pj := range in {
			switch {
			case pj.Special != nil && pj.Sequence == nil:
				s, ok := p.Special[pj.Special.ID]
				if !ok {
					return nil, fmt.Errorf("%w: post_processor: template %q uses %.40q, which special_tokens lacks", ErrFormat, what, pj.Special.ID)
				}
				out = append(out, piece{ids: s.IDs, typeID: pj.Special.TypeID})
			case pj.Sequence != nil && pj.Special == nil && (pj.Sequence.ID == "A" || pj.Sequence.ID == "B"):
				seen += pj.Sequence.ID
				out = append(out, piece{sequence: pj.Sequence.ID[0], typeID: pj.Sequence.TypeID})
			default:
				return nil, fmt.Errorf("%w: post_processor: template %q has a piece that is neither a SpecialToken nor Sequence A or B", ErrFormat, what)
			}
		}
		got := strings.Split(seen, "")
		sort.Strings(got)
		if strings.Join(got, "") != sequences {
			return nil, fmt.Errorf("%w: post_processor: template %q uses the sequences %q, expected each of %q once", ErrFormat, what, seen, sequences)
		}
		return out, nil
	}
	var err error
	if t.single, err = build("single", p.Single, "A"); err != nil {
		return err
	}
	if len(p.Pair) > 0 {
		t.pair, err = build("pair", p.Pair, "AB")
	}
	return err
}

func (t *Tokenizer) readPadding(f *fileJSON) error {
	if f.Padding != nil && f.Padding.PadID != nil {
		if *f.Padding.PadID < 0 || *f.Padding.PadID > maxTokenID {
			return fmt.Errorf("%w: pad_id is %d", ErrFormat, *f.Padding.PadID)
		}
		t.padID = int32(*f.Padding.PadID)
		return nil
	}
	for _, name := range []string{"[PAD]", "<pad>"} {
		if id, ok := t.first[name]; ok {
			t.padID = id
			return nil
		}
	}
	t.padID = 0
	return nil
}
