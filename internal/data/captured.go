package data

import (
	"context"
	"fmt"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/rollout/capture"
	"github.com/fewbit/fewbit/internal/task"
)

// captured is the source of inputs that a served model was asked with.
type captured struct {
	file file
	name string
	r    *capture.Reader
	spec engine.IOSpec
	mask string // the input whose padding is cut off, or ""
}

var _ source = (*captured)(nil)

func openCaptured(f file, size int64, name string, o Options) (source, error) {
	if o.CaptureKey == nil {
		return nil, fmt.Errorf("%w: %s holds captured inputs, which only the server that captured them reads; export them with GET /models/NAME/capture/samples.npz", ErrUnsupported, name)
	}
	r, err := capture.NewReader(f, size, o.CaptureKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFormat, name, err)
	}
	have := map[string]bool{}
	for _, in := range r.Status().Inputs {
		have[in.Name] = true
	}
	for _, in := range o.Spec.Inputs {
		if !have[in.Name] {
			return nil, fmt.Errorf("%w: the captured inputs of model %s lack %q; capture again with the version that is to be quantized", ErrMismatch, r.Status().Model, in.Name)
		}
	}
	c := &captured{file: f, name: name, r: r, spec: o.Spec}
	if in, err := task.FindTextInputs(o.Spec); err == nil && !o.KeepPadding {
		c.mask = in.Mask
		for _, io := range o.Spec.Inputs {
			if io.Dims[1] >= 0 {
				c.mask = "" // a fixed length must be kept
			}
		}
	}
	return c, nil
}

func (c *captured) size() int            { return c.r.Len() }
func (c *captured) kind() string         { return kindCaptured }
func (c *captured) labelNames() []string { return nil }
func (c *captured) labelled() bool       { return false }
func (c *captured) rewind() error        { return nil }
func (c *captured) close() error         { return c.file.Close() }

func (c *captured) read(_ context.Context, i int) (Sample, error) {
	x, err := c.r.Sample(i)
	if err != nil {
		return Sample{}, fmt.Errorf("%w: %s: %w", ErrFormat, c.name, err)
	}
	s := Sample{Feeds: make(engine.Feeds, len(c.spec.Inputs)), ID: fmt.Sprintf("captured %d", i)}
	for _, in := range c.spec.Inputs {
		s.Feeds[in.Name] = x.Feeds[in.Name]
	}
	if err := engine.CheckFeeds(c.spec, s.Feeds); err != nil {
		return Sample{}, fmt.Errorf("%w: %s: sample %d: %w", ErrMismatch, c.name, i, err)
	}
	if c.mask != "" {
		s.Tokens = trimPadding(s.Feeds, c.mask)
	}
	return s, nil
}

// trimPadding cuts inputs of the mask's length to the last position whose mask
// is not 0, and returns how many positions are not masked. A mask without any 1
// is left alone.
func trimPadding(f engine.Feeds, mask string) int {
	m := f[mask]
	size := m.Type.Bits() / 8
	n, tokens := 0, 0
	for i := 0; i*size < len(m.Data); i++ {
		if v, _ := integerAt(m.Type, m.Data[i*size:]); v != 0 {
			n = i + 1
			tokens++
		}
	}
	if n == 0 {
		return 0
	}
	length := m.Dims[1]
	for _, t := range f {
		if len(t.Dims) == 2 && t.Dims[1] == length {
			t.Dims[1] = int64(n)
			t.Data = t.Data[:n*(t.Type.Bits()/8)]
		}
	}
	return tokens
}
