package pipeline

import (
	"context"
	"errors"
	"fmt"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/quant"
)

// Device runs float models and counts what they compute where it computes it: a
// GPU. What it cannot do is an error, and the engine calibrates instead.
type Device interface {
	// Watch opens the model at path. specs are of its inputs and outputs; of those
	// in rows it takes samples.
	Watch(ctx context.Context, path string, specs map[string]calib.Spec, rows map[string]*quant.Rows) (Watch, error)
}

// Watch is a model on a Device. What is wrong with one sample may be said later.
type Watch interface {
	// Name is the device's and its arithmetic, for receipts.
	Name() string
	Run(ctx context.Context, in engine.Feeds, id calib.SampleID) error
	// Entropy searches the thresholds of calib.MethodEntropy on the device.
	Entropy(s calib.Scheme) (map[string]calib.Range, error)
	// Collect reads the statistics back.
	Collect(c *calib.Collector) error
	Close() error
}

// deviceFault is an error that says nothing against model and data.
type deviceFault struct{ err error }

func (f *deviceFault) Error() string { return f.err.Error() }
func (f *deviceFault) Unwrap() error { return f.err }

// onDevice observes on lab's Device.
func onDevice(ctx context.Context, c *calibration, ev *Evidence) (observer, error) {
	d := &watched{ev: ev, inputs: map[string]bool{}, scheme: tableScheme(c.plan.Config)}
	d.entropy = c.plan.Config.Method == calib.MethodEntropy || c.plan.Config.Method == quant.Auto
	for _, v := range c.model.Graph.Inputs {
		d.inputs[v.Name] = true
	}
	err := c.lab.withFile(c.model, c.taps, func(path string) (err error) {
		d.w, err = c.lab.Device.Watch(ctx, path, c.specs, ev.rows)
		if err != nil {
			err = &deviceFault{err}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	ev.Engine = d.w.Name()
	return d, nil
}

// watched is a model on a Device.
type watched struct {
	ev      *Evidence
	w       Watch
	inputs  map[string]bool
	scheme  calib.Scheme // of activations
	entropy bool         // a method asks for its thresholds
}

func (d *watched) close() { _ = d.w.Close() } // nothing is read from it any more

func (d *watched) observe(ctx context.Context, sample data.Sample, id calib.SampleID) error {
	in := engine.Feeds{}
	for name, t := range sample.Feeds {
		if d.inputs[name] {
			in[name] = t
		}
	}
	if err := d.w.Run(ctx, in, id); err != nil {
		return &deviceFault{err}
	}
	return nil
}

// finish has the thresholds searched where the statistics are, then reads both back.
func (d *watched) finish() error {
	var found map[string]calib.Range
	if d.entropy {
		var err error
		found, err = d.w.Entropy(d.scheme)
		// Tensors without a value have no threshold: whoever needs one will say so.
		if err != nil && !errors.Is(err, calib.ErrNoData) && !errors.Is(err, calib.ErrAllNaN) {
			return &deviceFault{fmt.Errorf("entropy search: %w", err)}
		}
	}
	if err := d.w.Collect(d.ev.Collector); err != nil {
		return &deviceFault{err}
	}
	d.ev.Found(calib.MethodEntropy, d.scheme, found)
	return nil
}
