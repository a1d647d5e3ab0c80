package app

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/task"
	"github.com/fewbit/fewbit/internal/task/vision"
)

// validateModel looks at an upload before it is published: the graph is whole,
// the engine opens it, and what lies beside it fits it. Errors refuse it.
func validateModel(e engine.Engine, dir string) error {
	path := filepath.Join(dir, registry.ModelFile)
	m, err := graph.Open(path)
	if err != nil {
		return err
	}
	if err = checkScales(m.Graph); err == nil {
		err = checkMemory(m)
	}
	if cerr := m.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	s, err := e.OpenFile(context.Background(), path, engine.Options{})
	if err != nil {
		return err
	}
	err = validateTask(s, dir)
	if cerr := s.Close(); cerr != nil {
		return errors.Join(err, fmt.Errorf("closing the model: %w", cerr))
	}
	return err
}

// scaleInputs are the inputs with scales of the operators that convert between
// numbers and codes.
var scaleInputs = map[string][]int{"QuantizeLinear": {1}, "DequantizeLinear": {1}, "QLinearConv": {1, 4, 6}, "QLinearMatMul": {1, 4, 6}}

// checkScales refuses a scale that makes NaN of every number: one that is not
// finite, and one that is divided by and not above 0. The engine would take it.
func checkScales(g *graph.Graph) error {
	for _, n := range g.Nodes {
		for _, i := range scaleInputs[n.Op] {
			t := g.Init(n.In(i))
			if t == nil || n.Domain != graph.DomainONNX {
				continue
			}
			scales, err := t.F32()
			if err != nil {
				continue // of a type that the engine refuses
			}
			at := scaleInputs[n.Op]
			divides := n.Op != "DequantizeLinear" && i == at[len(at)-1] // the output's
			for _, v := range scales {
				if x := float64(v); math.IsNaN(x) || math.IsInf(x, 0) || divides && x <= 0 {
					return fmt.Errorf("%w: operator %s %q: scale %q is %v, expected a finite number above 0; quantize the model again", registry.ErrInvalid, n.Op, n.Name, n.In(i), v)
				}
			}
		}
	}
	return nil
}

// checkMemory refuses a model with a tensor that this machine cannot hold,
// whatever it is fed with: the engine would try, and be killed. m is changed.
func checkMemory(m *graph.Model) error {
	total, ok := engine.TotalMemory()
	if !ok {
		return nil
	}
	graph.InferShapes(m)
	for _, n := range m.Graph.Nodes {
		for _, name := range n.Outputs {
			v := m.Graph.Info[name]
			if v == nil || len(v.Dims) == 0 {
				continue
			}
			bytes := float64(v.Type.Bits()) / 8
			for _, d := range v.Dims {
				bytes *= float64(max(d.N, 1)) // a variable one is at least 1
			}
			if bytes > float64(total) {
				return fmt.Errorf("%w: tensor %q of operator %s has %.3g GB, this machine %.3g", engine.ErrMemory, name, n.Op, bytes/1e9, float64(total)/1e9)
			}
		}
	}
	return nil
}

// validateTask looks at the files beside a model that say what it is for.
func validateTask(s engine.Session, dir string) error {
	prep, err := preparerFor(dir, s.Spec())
	if err != nil {
		return err
	}
	if _, err := vision.New(s.Spec(), dir); err != nil && !errors.Is(err, vision.ErrNotImage) && exists(dir, vision.ConfigFile) {
		return err
	}
	labels, err := task.ReadLabels(dir)
	if err != nil || labels == nil {
		return err
	}
	text, isText := prep.(*textPreparer)
	verdict := noScores
	for _, io := range s.Spec().Outputs {
		verdict = max(verdict, mayScore(io, len(labels), isText))
	}
	switch {
	case verdict == noScores:
		return labelsError(labels, "", outputsText(s.Spec()))
	case verdict == someScores || !isText:
		return nil
	}
	// Only a run tells how many scores there are.
	feeds, err := text.Text([]string{"a"})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), validateTimeout)
	defer cancel()
	res, err := s.Run(ctx, feeds, nil)
	if err != nil {
		return fmt.Errorf("the model does not run on a text of one letter: %w", err)
	}
	defer res.Close()
	var seen []string
	for name, t := range res.Tensors() {
		if t.Type.IsFloat() && len(t.Dims) == 2 && t.Dims[1] == int64(len(labels)) {
			return nil
		}
		seen = append(seen, fmt.Sprintf("%s is %v", name, t.Dims))
	}
	slices.Sort(seen)
	return labelsError(labels, "on one text ", strings.Join(seen[:min(len(seen), maxOutputsShown)], ", "))
}

func exists(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return err == nil
}

func labelsError(labels []string, when, outputs string) error {
	return fmt.Errorf("%w: %s names %d classes, but no output of the model has so many scores: %s%s", task.ErrConfig, task.LabelsFile, len(labels), when, outputs)
}

// What an output's declaration says of holding the scores of the classes.
const (
	noScores = iota
	unknownScores
	someScores
)

// mayScore tells whether io holds n scores a sample. Of a model that takes texts
// it is [texts, n], which is what classification reads.
func mayScore(io engine.IO, n int, text bool) int {
	switch {
	case !io.Type.IsFloat(), text && len(io.Dims) != 0 && len(io.Dims) != 2, len(io.Dims) == 1:
		return noScores
	case len(io.Dims) == 0, slices.ContainsFunc(io.Dims[1:], func(d int64) bool { return d < 0 }):
		return unknownScores
	}
	scores := int64(1)
	for _, d := range io.Dims[1:] {
		scores *= d
	}
	if scores == int64(n) {
		return someScores
	}
	return noScores
}

func outputsText(spec engine.IOSpec) string {
	var s []string
	for _, io := range spec.Outputs {
		s = append(s, fmt.Sprintf("%s is %v", io.Name, io.Dims))
	}
	return strings.Join(s[:min(len(s), maxOutputsShown)], ", ")
}

const (
	// maxOutputsShown bounds the outputs in an error.
	maxOutputsShown = 8
	// validateTimeout bounds the one run of a model that is uploaded.
	validateTimeout = 30 * time.Second
)

// validateDataset looks at a data set before it is stored.
func validateDataset(ctx context.Context, path string, _ registry.Kind) (registry.Facts, error) {
	f, err := data.Check(ctx, path)
	return registry.Facts{Samples: f.Samples, Labelled: f.Labelled}, err
}
