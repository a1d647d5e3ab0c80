package app

import (
	"errors"
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
}

var _ http.Preparer = (*textPreparer)(nil)

func (p *textPreparer) Text(texts []string) (engine.Feeds, error) {
	in := make([]task.Text, len(texts))
	for i, t := range texts {
		in[i].Text = t
	}
	feeds, _, err := p.enc.Encode(in...)
	return feeds, err
}

func (p *textPreparer) Labels() []string { return p.labels }

// preparerFor returns the preparer of a model in dir: for texts when there is a
// tokenizer beside it, else none.
func preparerFor(dir string, spec engine.IOSpec) (registry.Preparer, error) {
	labels, err := task.ReadLabels(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, task.TokenizerFile)); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	enc, err := task.NewTextEncoder(spec, dir, 0)
	if err != nil {
		return nil, err
	}
	return &textPreparer{enc, labels}, nil
}
