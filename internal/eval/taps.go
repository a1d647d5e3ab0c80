package eval

import (
	"context"
	"fmt"

	"github.com/fewbit/fewbit/internal/engine"
)

// Tap names one tensor that both models compute, possibly under two names.
type Tap struct{ Name, Ref, Quant string }

// inner compares the taps of one sample.
func (c *comparison) inner(ctx context.Context, s Sample, r, q engine.Feeds) error {
	if c.o.Inner != nil {
		ir, err := c.o.Inner.Run(ctx, s.Feeds, c.quantTaps)
		if err != nil {
			return fmt.Errorf("inside the quantized model: %w", err)
		}
		defer ir.Close()
		q = ir.Tensors()
	}
	for _, t := range c.o.Taps {
		if err := c.observe(c.taps, t, r, q); err != nil {
			return err
		}
	}
	return nil
}
