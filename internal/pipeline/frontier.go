package pipeline

import (
	"maps"
	"sync"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
)

// frontierBytes bounds the codes that a frontier holds, of all samples together.
const frontierBytes = 256 << 20

// frontier holds how far a quantized model has run on some samples, whose operators are
// changed from the front to the back: the codes that what is left of it begins with.
// What they were computed from need not run again. A model that holds no codes, or too
// many, runs from its inputs.
type frontier struct {
	m     *graph.Model
	limit int64
	known map[string]*graph.Value // codes that are held
	held  []engine.Feeds          // by sample: the model's inputs and the codes
	// The step that is under way.
	made map[string]bool // codes that it computes and what is left needs
	left map[string]bool // what else is left needs
	mu   sync.Mutex
	size int64 // of what is held with what is made
	next []engine.Feeds
}

// frontierBytes is how much a frontier may hold: nothing below a ceiling.
func (l *Lab) frontierBytes() int64 {
	if l.limits != nil {
		return 0
	}
	return frontierBytes
}

func newFrontier(m *graph.Model, feeds []engine.Feeds, limit int64) *frontier {
	return &frontier{m: m, limit: limit, known: map[string]*graph.Value{}, held: feeds}
}

// part begins a step: it returns the part of the model that computes value, and the
// codes in it that the values after it begin with, which keep wants.
func (f *frontier) part(value string, after []string) (*graph.Model, []string) {
	part := between(f.m, f.known, []string{value})
	f.made, f.left, f.size, f.next = map[string]bool{}, map[string]bool{}, 0, make([]engine.Feeds, len(f.held))
	if f.limit == 0 {
		return part, nil
	}
	given := maps.Clone(f.known)
	for _, n := range part.Graph.Nodes {
		if n.Op != "QuantizeLinear" {
			continue
		}
		if zero := f.m.Graph.Init(n.In(2)); zero != nil {
			given[n.Outputs[0]] = &graph.Value{Name: n.Outputs[0], Type: zero.Type}
		}
	}
	if len(after) > 0 {
		for _, in := range between(f.m, given, after).Graph.Inputs {
			switch {
			case f.known[in.Name] != nil || given[in.Name] == nil:
				f.left[in.Name] = true
			default:
				f.made[in.Name] = true
			}
		}
	}
	for name := range f.made {
		part.Graph.Info[name] = given[name]
	}
	return part, sortedKeys(f.made)
}

// keep takes what the step has made of one sample.
func (f *frontier) keep(sample int, values engine.Feeds) {
	var size int64
	for name := range f.made {
		size += int64(len(values[name].Data))
	}
	for name := range f.left {
		if t := f.held[sample][name]; t != nil && f.known[name] != nil {
			size += int64(len(t.Data))
		}
	}
	f.mu.Lock()
	f.size += size
	full := f.size > f.limit
	f.mu.Unlock()
	if full {
		return
	}
	next := engine.Feeds{}
	for name, t := range f.held[sample] {
		if f.known[name] == nil || f.left[name] {
			next[name] = t
		}
	}
	for name := range f.made {
		next[name] = values[name].Clone()
	}
	f.next[sample] = next
}

// advance ends the step: the next one begins where it ended, or where it began, if
// that was too much to hold.
func (f *frontier) advance() {
	if len(f.made) == 0 {
		return
	}
	for _, n := range f.next {
		if n == nil {
			f.next = nil
			return
		}
	}
	f.held, f.next = f.next, nil
	known := map[string]*graph.Value{}
	for name := range f.left {
		if v := f.known[name]; v != nil {
			known[name] = v
		}
	}
	for name := range f.made {
		known[name] = f.describe(name)
	}
	f.known = known
}

// describe is the type of what is held under a name. Its rank, which the engine
// chooses layouts by, is known, a size where the samples agree.
func (f *frontier) describe(name string) *graph.Value {
	first := f.held[0][name]
	v := &graph.Value{Name: name, Type: first.Type, Dims: make([]graph.Dim, len(first.Dims))}
	for i, d := range first.Dims {
		v.Dims[i].N = d
		for _, h := range f.held {
			if h[name].Dims[i] != d {
				v.Dims[i].N = -1
			}
		}
	}
	return v
}
