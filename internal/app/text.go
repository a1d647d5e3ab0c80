package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/task"
)

// textPreparer makes feeds of texts. How many and how long they may be the
// HTTP server bounds; the encoder cuts each to its largest number of tokens.
type textPreparer struct {
	enc    *task.TextEncoder
	labels []string
	// of embedding models
	pooling      task.Pooling
	output       string
	notEmbedding error
}

var _ http.Texts = (*textPreparer)(nil)

func (p *textPreparer) Text(texts []string) (engine.Feeds, error) {
	in := make([]task.Text, len(texts))
	for i, t := range texts {
		in[i].Text = t
	}
	feeds, _, err := p.enc.Encode(in...)
	return feeds, err
}

func (p *textPreparer) Encode(texts []http.TextPair) (engine.Feeds, []int, error) {
	in := make([]task.Text, len(texts))
	for i, t := range texts {
		in[i] = task.Text(t)
	}
	return p.enc.Encode(in...)
}

func (p *textPreparer) Token(id int64) (string, bool) { return p.enc.Token(id) }
func (p *textPreparer) Pooling() string               { return string(p.pooling) }

func (p *textPreparer) Tokens(ids [][]int64) (engine.Feeds, []int, error) { return p.enc.Tokens(ids) }
func (p *textPreparer) Count(t http.TextPair) int                         { return p.enc.CountTokens(task.Text(t)) }
func (p *textPreparer) MaxTokens() int                                    { return p.enc.MaxTokens() }

func (p *textPreparer) Tokenize(text string, special bool) []int64 {
	return p.enc.Tokenize(text, special)
}

func (p *textPreparer) Embed(out engine.Feeds, lengths []int) ([][]float32, error) {
	if p.notEmbedding != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrModel, p.notEmbedding)
	}
	return p.pooling.Pool(out[p.output], lengths)
}

func (p *textPreparer) Labels() []string { return p.labels }

// preparerFor returns the preparer of a model in dir: for texts when there is a
// tokenizer beside it, for images when its input is one, else none.
func preparerFor(dir string, spec engine.IOSpec) (registry.Preparer, error) {
	labels, err := task.ReadLabels(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, task.TokenizerFile)); errors.Is(err, os.ErrNotExist) {
		return imagePreparerFor(dir, spec, labels)
	}
	enc, err := task.NewTextEncoder(spec, dir, 0)
	if err != nil {
		return nil, err
	}
	p := &textPreparer{enc: enc, labels: labels}
	if p.pooling, err = task.ReadPooling(dir); err != nil {
		return nil, err
	}
	p.output, _, p.notEmbedding = task.EmbeddingOutput(spec)
	return p, nil
}
