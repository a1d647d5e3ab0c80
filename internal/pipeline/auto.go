package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sort"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	// autoSamples is how many calibration samples the candidates are tried on, at least.
	autoSamples = 8
	// autoValues is how many values of a tensor they have at least: in few of them a range
	// finds no outlier, and would be chosen as if there were none. Of each tensor, so that
	// it is chosen alike whatever else is quantized, or observed beside it.
	autoValues = 1 << 13
)

// autoPass chooses, for each tensor between convolutions, the candidate range
// with the smallest error at the outputs of the operators that read it: the
// operator is run on the float tensor and on its quantized copy.
type autoPass struct {
	lab      *Lab
	plan     *quant.Plan
	choices  quant.Choices
	samples  func() (data.Dataset, error)
	progress Progress
	tried    map[string]int // samples by tensor, set by Run
}

var _ quant.Pass = (*autoPass)(nil)

func (a *autoPass) Name() string { return "auto-ranges" }

// reader is one operator that reads tensors under choice, alone in a session.
type reader struct {
	op   *quant.Op
	sess engine.Session
	out  string
}

// asked is one input of an operator that is under choice.
type asked struct {
	op *quant.Op
	x  string
}

func (a *autoPass) Run(ctx context.Context, m *graph.Model) (quant.Stats, error) {
	var all []asked
	for _, op := range a.plan.Ops {
		if op.Kind == quant.Through {
			continue
		}
		for i, x := range op.X {
			src := a.plan.Source(x)
			c := a.choices[src]
			if c == nil || !c.Own || x != src || (i > 0 && op.X[0] == x) {
				continue
			}
			all = append(all, asked{op, x})
		}
	}
	if len(all) == 0 {
		return quant.Stats{Note: "no tensors to choose by their readers"}, nil
	}
	errs, readers := map[string]map[string]float64{}, map[string]int{}
	a.tried = map[string]int{}
	// Beside each observed value there is its quantized copy and an output or two.
	for _, part := range pieces(all, a.lab.tapLimit(), func(q asked) (n int64) {
		for _, x := range q.op.X {
			n += a.lab.tapBytes(x)
		}
		return n
	}) {
		if err := a.ask(ctx, m, part, errs); err != nil {
			return quant.Stats{}, err
		}
		for _, q := range part {
			readers[q.x]++
		}
	}
	picked := map[string]int{}
	for t, e := range errs {
		c := a.choices[t]
		best, least := "", math.Inf(1)
		for _, name := range sortedKeys(e) {
			c.Errors[name] = e[name]
			if e[name] < least {
				best, least = name, e[name]
			}
		}
		if best == "" {
			continue
		}
		c.Pick(best, fmt.Sprintf("smallest output error of %d operators on %d samples: %.3g", readers[t], a.tried[t], least))
		picked[best]++
	}
	note := ""
	for _, name := range sortedKeys(picked) {
		note += fmt.Sprintf("%s %d, ", name, picked[name])
	}
	return quant.Stats{Changed: len(errs), Note: note + "chosen by output error"}, nil
}

// ask adds to errs what the operators in part lose by each candidate of their inputs.
func (a *autoPass) ask(ctx context.Context, m *graph.Model, part []asked, errs map[string]map[string]float64) error {
	open := map[string][]*reader{} // tensor under choice -> its readers
	defer func() {
		for _, rs := range open {
			for _, r := range rs {
				r.sess.Close()
			}
		}
	}()
	taps := map[string]bool{}
	for _, q := range part {
		r, err := a.reader(ctx, m, q.op)
		if err != nil {
			return fmt.Errorf("operator %q: %w", q.op.Node.Name, err)
		}
		open[q.x] = append(open[q.x], r)
		for _, in := range q.op.X {
			taps[in] = true
		}
	}
	return a.measure(ctx, m, open, taps, errs)
}

// reader opens op (with the activation that follows) as a model of its own.
func (a *autoPass) reader(ctx context.Context, m *graph.Model, op *quant.Op) (*reader, error) {
	nodes := []*graph.Node{op.Node}
	if op.Act != nil {
		nodes = append(nodes, op.Act)
	}
	sub := &graph.Model{IR: m.IR, Opsets: m.Opsets, Graph: &graph.Graph{Name: "reader", Nodes: nodes}}
	inner := map[string]bool{}
	for _, n := range nodes {
		for _, in := range n.Inputs {
			if t := m.Graph.Init(in); t != nil {
				sub.Graph.SetInit(in, t)
			}
		}
		inner[n.Outputs[0]] = true
	}
	seen := map[string]bool{}
	for _, x := range op.X {
		if !seen[x] && !inner[x] {
			seen[x] = true
			v := &graph.Value{Name: x, Type: tensor.Float32}
			if i := m.Graph.Info[x]; i != nil {
				v.Dims = i.Dims
			}
			sub.Graph.Inputs = append(sub.Graph.Inputs, v)
		}
	}
	out := nodes[len(nodes)-1].Outputs[0]
	sub.Graph.Outputs = []*graph.Value{{Name: out, Type: tensor.Float32}}
	s, err := a.lab.Open(ctx, sub, nil, engine.Options{Threads: max(1, a.lab.threads()/a.lab.atOnce())})
	if err != nil {
		return nil, err
	}
	return &reader{op: op, sess: s, out: out}, nil
}

func (a *autoPass) measure(ctx context.Context, m *graph.Model, open map[string][]*reader, taps map[string]bool, errs map[string]map[string]float64) error {
	isInput := map[string]bool{}
	for _, v := range m.Graph.Inputs {
		isInput[v.Name] = true
	}
	var outs []string
	for _, t := range sortedKeys(taps) {
		if !isInput[t] {
			outs = append(outs, t)
		}
	}
	full, err := a.lab.Open(ctx, m, outs, engine.Options{})
	if err != nil {
		return err
	}
	defer full.Close()
	outs = slices.Clone(outs) // which becomes shorter
	ds, err := a.samples()
	if err != nil {
		return err
	}
	defer ds.Close()
	left, seen := maps.Clone(open), map[string]int64{} // tensors that want more samples, and their values so far
	for i := 0; i < ds.Len() && len(left) > 0; i++ {
		s, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		outs = slices.DeleteFunc(outs, func(o string) bool { return !reads(left, o) })
		if err := a.one(ctx, full, outs, s.Feeds, left, errs, seen); err != nil {
			return err
		}
		done := 1.0 // of the tensor that wants most
		for t := range left {
			a.tried[t] = i + 1
			share := min(float64(i+1)/autoSamples, float64(seen[t])/autoValues)
			done = min(done, max(share, float64(i+1)/float64(ds.Len())))
			if share >= 1 {
				delete(left, t)
			}
		}
		a.progress.say("choose ranges", done)
	}
	return nil
}

// reads reports whether any of the readers takes value.
func reads(readers map[string][]*reader, value string) bool {
	for _, all := range readers {
		if slices.ContainsFunc(all, func(r *reader) bool { return slices.Contains(r.op.X, value) }) {
			return true
		}
	}
	return false
}

func (a *autoPass) one(ctx context.Context, full engine.Session, outs []string, feeds engine.Feeds, open map[string][]*reader, errs map[string]map[string]float64, seen map[string]int64) error {
	values := maps.Clone(feeds)
	if len(outs) > 0 { // else they are the model's inputs
		res, err := full.Run(ctx, feeds, outs)
		if err != nil {
			return err
		}
		defer res.Close()
		maps.Copy(values, res.Tensors())
	}
	tensors := sortedKeys(open)
	for _, t := range tensors {
		if errs[t] == nil {
			errs[t] = map[string]float64{}
		}
		seen[t] += values[t].Len()
	}
	return eachOf(len(tensors), a.lab.atOnce(), func(i int) error {
		t := tensors[i]
		return a.tensor(ctx, t, values, open[t], errs[t])
	})
}

// tensor adds to errs what the readers lose by each candidate of t on one sample.
func (a *autoPass) tensor(ctx context.Context, t string, values engine.Feeds, readers []*reader, errs map[string]float64) error {
	c := a.choices[t]
	x, err := values[t].F32()
	if err != nil {
		return err
	}
	for _, r := range readers {
		var ref []float32
		var power float64
		if err := r.run(ctx, values, "", nil, func(y []float32) {
			ref = append(ref, y...)
			for _, v := range y {
				power += float64(v) * float64(v)
			}
		}); err != nil {
			return err
		}
		for name, rg := range c.Candidates {
			q := quant.FakeQuantize(x, calib.ParamsFor(rg, c.Scheme), c.Scheme)
			if err := r.run(ctx, values, t, tensor.From(q, values[t].Dims...), func(y []float32) {
				var sum float64
				for i, v := range y {
					d := float64(v) - float64(ref[i])
					sum += d * d
				}
				errs[name] += sum / math.Max(power, 1e-30)
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// run executes the operator with input replaced, when it is not "", and hands over what
// it gives while it is valid.
func (r *reader) run(ctx context.Context, values engine.Feeds, input string, t *tensor.Tensor, use func(y []float32)) error {
	f := engine.Feeds{}
	for _, x := range r.op.X {
		f[x] = values[x]
	}
	if input != "" {
		f[input] = t
	}
	res, err := r.sess.Run(ctx, f, nil)
	if err != nil {
		return err
	}
	defer res.Close()
	y, err := res.Tensors()[r.out].F32()
	if err != nil {
		return err
	}
	use(y)
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	k := make([]string, 0, len(m))
	for s := range m {
		k = append(k, s)
	}
	sort.Strings(k)
	return k
}
