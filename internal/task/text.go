// Package task turns what people send (texts, images) into a model's inputs
// and its outputs into answers (labels with scores). It owns no model: the
// callers are the readers of data sets and the servers.
package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/task/wordpiece"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Errors of this package.
var (
	// ErrNotText: the model's inputs are not those of a text encoder.
	ErrNotText = errors.New("not a text model")
	// ErrNoTokenizer: there is no tokenizer.json beside the model.
	ErrNoTokenizer = errors.New("no tokenizer")
	// ErrConfig: a file beside the model cannot be used.
	ErrConfig = errors.New("bad file beside the model")
)

// Names of the files that lie beside a model.
const (
	TokenizerFile = "tokenizer.json"
	LabelsFile    = "labels.txt"
)

// DefaultMaxTokens is the length at which texts are cut when nobody says
// otherwise; attention costs grow with the square of the length.
const DefaultMaxTokens = 256

// maxConfigBytes bounds the small JSON files beside a model.
const maxConfigBytes = 1 << 20

// TextInputs names the inputs of a text encoder; a role that the model lacks
// is "".
type TextInputs struct {
	IDs, Mask, Types, Positions string
}

// roleNames are the names by which exporters call the inputs of a text encoder.
var roleNames = map[string]func(*TextInputs) *string{
	"input_ids": roleIDs, "input_word_ids": roleIDs, "token_ids": roleIDs, "ids": roleIDs, "tokens": roleIDs,
	"attention_mask": roleMask, "input_mask": roleMask, "mask": roleMask,
	"token_type_ids": roleTypes, "segment_ids": roleTypes, "input_type_ids": roleTypes, "type_ids": roleTypes, "types": roleTypes,
	"position_ids": rolePositions, "positions": rolePositions,
}

func roleIDs(t *TextInputs) *string       { return &t.IDs }
func roleMask(t *TextInputs) *string      { return &t.Mask }
func roleTypes(t *TextInputs) *string     { return &t.Types }
func rolePositions(t *TextInputs) *string { return &t.Positions }

// FindTextInputs says which input of the model takes the ids, the mask, the
// types and the positions of a text, or ErrNotText. All of them must be
// integers of shape [batch, sequence].
func FindTextInputs(spec engine.IOSpec) (TextInputs, error) {
	var in TextInputs
	for _, io := range spec.Inputs {
		name := strings.ToLower(io.Name)
		name, _, _ = strings.Cut(name, ":") // TensorFlow's "input_ids:0"
		role, ok := roleNames[name]
		if !ok || len(io.Dims) != 2 || (io.Type != tensor.Int64 && io.Type != tensor.Int32) || *role(&in) != "" {
			return TextInputs{}, fmt.Errorf("%w: input %q is %v%v, expected input_ids, attention_mask and token_type_ids as INT64 or INT32 [batch, sequence]", ErrNotText, io.Name, io.Type, io.Dims)
		}
		*role(&in) = io.Name
	}
	if in.IDs == "" {
		return TextInputs{}, fmt.Errorf("%w: it has no input for token ids (input_ids)", ErrNotText)
	}
	return in, nil
}

// TextEncoder makes the inputs of a text encoder from texts. It is safe for
// use by many goroutines.
type TextEncoder struct {
	tok      *wordpiece.Tokenizer
	spec     engine.IOSpec
	inputs   TextInputs
	max      int
	fixed    int // the model's sequence length, 0 when variable
	fixBatch int // the model's batch, 0 when variable
}

// Text is one text, or two when HasPair is set.
type Text struct {
	Text, Pair string
	HasPair    bool
	CutLeft    bool // what is too long loses its beginning, not its end
}

// NewTextEncoder reads the tokenizer from dir, the folder of the model.
// Texts are cut to maxTokens (0: DefaultMaxTokens), to the length that the
// configuration files beside the model allow, and to the model's own length
// where this is fixed.
func NewTextEncoder(spec engine.IOSpec, dir string, maxTokens int) (*TextEncoder, error) {
	in, err := FindTextInputs(spec)
	if err != nil {
		return nil, err
	}
	if dir == "" {
		return nil, fmt.Errorf("%w: the model's folder is not known, so its %s is not either", ErrNoTokenizer, TokenizerFile)
	}
	tok, err := wordpiece.Load(filepath.Join(dir, TokenizerFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: put the model's %s beside it", ErrNoTokenizer, TokenizerFile)
	} else if err != nil {
		return nil, err
	}
	return newTextEncoder(spec, in, tok, dir, maxTokens)
}

func newTextEncoder(spec engine.IOSpec, in TextInputs, tok *wordpiece.Tokenizer, dir string, maxTokens int) (*TextEncoder, error) {
	if maxTokens <= 0 {
		maxTokens = DefaultMaxTokens
	}
	limit, err := positionLimit(dir)
	if err != nil {
		return nil, err
	}
	if limit > 0 {
		maxTokens = min(maxTokens, limit)
	}
	e := &TextEncoder{tok: tok, spec: spec, inputs: in}
	for _, io := range spec.Inputs {
		if b := int(io.Dims[0]); b > 0 {
			e.fixBatch = b
		}
		if s := int(io.Dims[1]); s > 0 {
			if e.fixed > 0 && e.fixed != s {
				return nil, fmt.Errorf("%w: inputs of length %d and %d", ErrNotText, e.fixed, s)
			}
			e.fixed = s
		}
	}
	if e.fixed > 0 {
		maxTokens = min(maxTokens, e.fixed)
	}
	if e.max = maxTokens; e.max <= tok.Special(false) {
		return nil, fmt.Errorf("%w: %d tokens leave no room for a text beside the %d special ones", ErrConfig, e.max, tok.Special(false))
	}
	return e, nil
}

// positionLimit returns the longest input that the files beside the model
// declare, 0 when none does.
func positionLimit(dir string) (int, error) {
	limit := 0
	for _, f := range []struct{ file, key string }{
		{"tokenizer_config.json", "model_max_length"},
		{"sentence_bert_config.json", "max_seq_length"},
		{"config.json", "max_position_embeddings"},
	} {
		var m map[string]json.RawMessage
		ok, err := readConfig(dir, f.file, &m)
		if err != nil {
			return 0, err
		}
		var v float64 // model_max_length is 1e30 where the author did not know
		if !ok || m[f.key] == nil || json.Unmarshal(m[f.key], &v) != nil {
			continue
		}
		if v >= 1 && v < 1<<24 && (limit == 0 || int(v) < limit) {
			limit = int(v)
		}
	}
	return limit, nil
}

// readConfig decodes a JSON file beside the model; false when it is not there.
func readConfig(dir, name string, into any) (bool, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return false, nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil || len(b) > maxConfigBytes {
		return false, fmt.Errorf("%w: %s cannot be read or is larger than %d bytes", ErrConfig, name, maxConfigBytes)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return false, fmt.Errorf("%w: %s: %w", ErrConfig, name, err)
	}
	return true, nil
}

// MaxTokens returns the length at which texts are cut.
func (e *TextEncoder) MaxTokens() int { return e.max }

// Inputs returns the names of the model's inputs by role.
func (e *TextEncoder) Inputs() TextInputs { return e.inputs }

// Tokenizer returns the tokenizer.
func (e *TextEncoder) Tokenizer() *wordpiece.Tokenizer { return e.tok }

// Encode returns the model's inputs for texts, as one batch: shape
// [len(texts), length of the longest], shorter texts padded on the right with
// the mask 0, and the number of tokens of each text without padding. A single
// text has no padding unless the model's length is fixed.
func (e *TextEncoder) Encode(texts ...Text) (engine.Feeds, []int, error) {
	if e.fixBatch > 0 && e.fixBatch != len(texts) {
		return nil, nil, fmt.Errorf("%w: the model takes batches of exactly %d, got %d texts; export it with a variable batch", engine.ErrInput, e.fixBatch, len(texts))
	}
	if len(texts) == 0 {
		return nil, nil, fmt.Errorf("%w: no text", engine.ErrInput)
	}
	enc := make([]wordpiece.Encoding, len(texts))
	for i, t := range texts {
		switch {
		case t.HasPair && !e.tok.HasPairs():
			return nil, nil, fmt.Errorf("%w: the tokenizer has no template for pairs of texts", engine.ErrInput)
		case t.HasPair:
			enc[i] = e.tok.EncodePair(t.Text, t.Pair, e.max, t.CutLeft)
		default:
			enc[i] = e.tok.EncodeSingle(t.Text, e.max, t.CutLeft)
		}
	}
	feeds, lens := e.batch(enc)
	return feeds, lens, nil
}

// Tokens is Encode for texts that are token ids already, special ones included.
// Errors: engine.ErrInput for ids outside the vocabulary and for more than
// MaxTokens.
func (e *TextEncoder) Tokens(ids [][]int64) (engine.Feeds, []int, error) {
	if e.fixBatch > 0 && e.fixBatch != len(ids) || len(ids) == 0 {
		return nil, nil, fmt.Errorf("%w: %d texts, the model takes batches of %d", engine.ErrInput, len(ids), max(e.fixBatch, 1))
	}
	enc := make([]wordpiece.Encoding, len(ids))
	for i, row := range ids {
		if len(row) == 0 || len(row) > e.max {
			return nil, nil, fmt.Errorf("%w: text %d has %d tokens, the model takes 1 to %d", engine.ErrInput, i, len(row), e.max)
		}
		for _, id := range row {
			if id < 0 || id >= int64(e.tok.VocabSize()) {
				return nil, nil, fmt.Errorf("%w: text %d has the token %d, the vocabulary has %d", engine.ErrInput, i, id, e.tok.VocabSize())
			}
		}
		enc[i] = wordpiece.Encoding{IDs: row, TypeIDs: make([]int64, len(row))}
	}
	feeds, lens := e.batch(enc)
	return feeds, lens, nil
}

// Tokenize returns the ids of a text, whatever their number, with or without
// the template's special tokens.
func (e *TextEncoder) Tokenize(text string, special bool) []int64 {
	if special {
		return e.tok.Encode(text, 0)
	}
	return e.tok.Plain(text)
}

// Token returns the text of an id, "" for one outside the vocabulary, and
// whether it is a special one.
func (e *TextEncoder) Token(id int64) (text string, special bool) { return e.tok.Token(id) }

// batch pads encodings to one batch.
func (e *TextEncoder) batch(enc []wordpiece.Encoding) (engine.Feeds, []int) {
	lens := make([]int, len(enc))
	width := e.fixed
	for i := range enc {
		lens[i] = len(enc[i].IDs)
		width = max(width, lens[i])
	}
	feeds := engine.Feeds{}
	for _, io := range e.spec.Inputs {
		vals := make([]int64, len(enc)*width)
		for i := range enc {
			e.fill(vals[i*width:(i+1)*width], io.Name, enc[i])
		}
		dims := []int64{int64(len(enc)), int64(width)}
		if io.Type == tensor.Int32 {
			narrow := make([]int32, len(vals))
			for i, v := range vals {
				narrow[i] = int32(v)
			}
			feeds[io.Name] = tensor.From(narrow, dims...)
		} else {
			feeds[io.Name] = tensor.From(vals, dims...)
		}
	}
	return feeds, lens
}

// fill writes one row of the input called name.
func (e *TextEncoder) fill(row []int64, name string, enc wordpiece.Encoding) {
	n := len(enc.IDs)
	switch name {
	case e.inputs.IDs:
		copy(row, enc.IDs)
		for i := n; i < len(row); i++ {
			row[i] = e.tok.PadID()
		}
	case e.inputs.Mask:
		for i := range n {
			row[i] = 1
		}
	case e.inputs.Types:
		copy(row, enc.TypeIDs)
	case e.inputs.Positions:
		for i := range row {
			row[i] = int64(i)
		}
	}
}
