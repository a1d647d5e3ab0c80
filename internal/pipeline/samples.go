package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
)

// eachSample runs the samples through m, which needs only some of the float model's
// inputs, and calls f with the inputs of each and the values of taps. Values are
// valid during the call. progress gets the share that is done.
func (l *Lab) eachSample(ctx context.Context, m *graph.Model, taps []string, samples func() (data.Dataset, error), progress func(float64), f func(feeds, values engine.Feeds) error) error {
	sess, err := l.Open(ctx, m, taps, engine.Options{ShrinkMemory: true})
	if err != nil {
		return err
	}
	defer sess.Close()
	return throughSamples(ctx, sess, taps, samples, progress, f)
}

// throughSamples is eachSample for a session whose outputs are taps.
func throughSamples(ctx context.Context, sess engine.Session, taps []string, samples func() (data.Dataset, error), progress func(float64), f func(feeds, values engine.Feeds) error) error {
	ds, err := samples()
	if err != nil {
		return fmt.Errorf("calibration data: %w", err)
	}
	defer ds.Close()
	one := func(feeds engine.Feeds) error {
		res, err := sess.Run(ctx, only(sess.Spec(), feeds), taps)
		if err != nil {
			return err
		}
		defer res.Close()
		return f(feeds, res.Tensors())
	}
	for n := 0; ; n++ {
		s, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := one(s.Feeds); err != nil {
			return fmt.Errorf("sample %s: %w", s.ID, err)
		}
		progress(float64(n+1) / float64(max(ds.Len(), n+1)))
	}
}
