package app

import (
	"errors"
	"fmt"
	"slices"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/task/vision"
	"github.com/fewbit/fewbit/internal/tensor"
)

// imagePreparer makes feeds of encoded images.
type imagePreparer struct {
	images *vision.Preparer
	input  engine.IO
	labels []string
}

var _ http.Images = (*imagePreparer)(nil)

// imagePreparerFor returns nil when the model takes no images. A model of images
// without a size that says so nowhere takes tensors only.
func imagePreparerFor(dir string, spec engine.IOSpec, labels []string) (registry.Preparer, error) {
	p, err := vision.New(spec, dir)
	switch {
	case errors.Is(err, vision.ErrNotImage), err != nil && !exists(dir, vision.ConfigFile):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &imagePreparer{p, spec.Inputs[0], labels}, nil
}

func (p *imagePreparer) Labels() []string                     { return p.labels }
func (p *imagePreparer) Image(b []byte) (engine.Feeds, error) { return p.images.Feeds(b) }

func (p *imagePreparer) Together(feeds []engine.Feeds) (engine.Feeds, error) {
	if d := p.input.Dims[0]; d >= 0 && d != int64(len(feeds)) {
		return nil, fmt.Errorf("%w: the model takes batches of exactly %d, got %d images; send as many at a time, or export it with a variable batch", engine.ErrInput, d, len(feeds))
	}
	first := feeds[0][p.input.Name]
	all, err := tensor.New(first.Type, append([]int64{int64(len(feeds))}, first.Dims[1:]...)...)
	if err != nil {
		return nil, err
	}
	at := 0
	for i, f := range feeds {
		t := f[p.input.Name]
		if !slices.Equal(t.Dims, first.Dims) {
			return nil, fmt.Errorf("%w: image %d becomes %v and the first %v; send images of different sizes one at a time", engine.ErrInput, i, t.Dims[1:], first.Dims[1:])
		}
		at += copy(all.Data[at:], t.Data)
	}
	return engine.Feeds{p.input.Name: all}, nil
}
