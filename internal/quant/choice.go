package quant

import (
	"fmt"

	"github.com/fewbit/fewbit/internal/calib"
)

// Choice is how one activation tensor will be quantized, and why.
type Choice struct {
	Tensor string
	// Method is the thresholder that set Range.
	Method string
	Range  calib.Range
	Params calib.QParams
	Scheme calib.Scheme
	// Smooth divides the tensor's last axis before it is quantized, and
	// multiplies the weights' input channels; nil is no smoothing.
	Smooth []float32
	// Alpha is the SmoothQuant exponent that made Smooth.
	Alpha float64
	// Errors holds each candidate's relative squared error of the consumers'
	// outputs; empty when Own is set.
	Errors map[string]float64
	// Candidates holds the range of each candidate.
	Candidates map[string]calib.Range
	// Own: chosen by the error of the tensor itself, for want of its
	// consumers' outputs.
	Own bool
	// Fixed: the range is the operator's, whatever the data.
	Fixed bool
	Why   string
}

// Choices maps a tensor to its choice.
type Choices map[string]*Choice

// get returns the choice of the tensor whose parameters t uses.
func (c Choices) get(p *Plan, t string) (*Choice, error) {
	s := p.Source(t)
	ch, ok := c[s]
	if !ok {
		return nil, fmt.Errorf("%w: %q", ErrUncalibrated, s)
	}
	return ch, nil
}

// Pick makes the candidate called method the choice.
func (c *Choice) Pick(method, why string) {
	c.set(method, c.Candidates[method], c.Scheme)
	c.Own, c.Why = false, why
}

// set fixes range, parameters and method.
func (c *Choice) set(method string, r calib.Range, s calib.Scheme) {
	c.Method, c.Range, c.Scheme = method, r.WithZero(), s
	c.Params = calib.ParamsFor(c.Range, s)
}
