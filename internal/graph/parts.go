package graph

import "github.com/fewbit/fewbit/internal/tensor"

// Parts cuts m into models of consecutive operators, each with constants of at most
// limit bytes or of one operator, for who runs one after the other so that only one's
// constants are resident. Inputs of a part are what it reads of the model's inputs and
// of earlier parts, outputs what later parts or the model's own outputs read of it.
// Cuts lie where only tensors of known type pass (InferShapes tells more of them), so
// a part may be larger. nil: m cannot be cut, or has no need to be.
//
// The parts share attributes and constants with m and are valid until it is closed.
func (m *Model) Parts(limit int64) []*Model {
	m = m.Clone()
	g := m.Graph
	g.Prune()
	c := newCutter(g)
	for _, o := range g.Outputs {
		if _, made := c.made[o.Name]; !made {
			return nil // an input or a constant handed out as it is belongs to no part
		}
	}
	bounds := c.cut(limit)
	if len(bounds) < 3 {
		return nil
	}
	var parts []*Model
	for i := range len(bounds) - 1 {
		parts = append(parts, c.part(m, bounds[i], bounds[i+1]))
	}
	return parts
}

// cutter knows which operator makes each value, and which is the last to read it.
type cutter struct {
	g      *Graph
	values map[string]*Value // of inputs and of what operators make, where they are tensors of known type
	made   map[string]int
	last   map[string]int // len(g.Nodes) for the model's outputs
	reads  [][]string
}

func newCutter(g *Graph) *cutter {
	c := &cutter{g: g, values: map[string]*Value{}, made: map[string]int{}, last: map[string]int{}}
	know := func(v *Value) {
		if v != nil && v.proto == nil && v.Type != tensor.Undefined {
			c.values[v.Name] = v
		}
	}
	for i, n := range g.Nodes {
		c.reads = append(c.reads, append(n.captures(), n.Inputs...))
		for _, in := range c.reads[i] {
			c.last[in] = i
		}
		for _, o := range n.Outputs {
			if o != "" {
				c.made[o] = i
				know(g.Info[o])
			}
		}
	}
	for _, v := range g.Inputs {
		know(v)
	}
	for _, v := range g.Outputs {
		know(v)
		c.last[v.Name] = len(g.Nodes)
	}
	return c
}

// cut returns where the parts begin, and the number of operators.
func (c *cutter) cut(limit int64) []int {
	bounds := []int{0}
	free := c.places()
	held, size, place := map[string]bool{}, int64(0), 0
	add := func(i int) {
		for _, in := range c.reads[i] {
			if t := c.g.Init(in); t != nil && !held[in] {
				held[in] = true
				size += int64(len(t.Data))
			}
		}
	}
	for i := range c.g.Nodes {
		if free[i] {
			place = i
		}
		before := size
		add(i)
		if size <= limit || size == before || place == bounds[len(bounds)-1] {
			continue
		}
		bounds = append(bounds, place)
		clear(held)
		size = 0
		for j := place; j <= i; j++ {
			add(j)
		}
	}
	return append(bounds, len(c.g.Nodes))
}

// places tells before which operators only tensors of known type are alive.
func (c *cutter) places() []bool {
	free := make([]bool, len(c.g.Nodes))
	unknown := 0
	ends := make([]int, len(c.g.Nodes)+1)
	for i, n := range c.g.Nodes {
		free[i] = unknown == 0
		for _, o := range n.Outputs {
			if last, read := c.last[o]; o != "" && read && last > i && c.values[o] == nil {
				unknown++
				ends[last]++
			}
		}
		unknown -= ends[i]
	}
	return free
}

// part returns the operators from lo to hi as a model.
func (c *cutter) part(m *Model, lo, hi int) *Model {
	p := m.Clone()
	g := p.Graph
	g.Nodes = g.Nodes[lo:hi]
	g.Inputs, g.Outputs = nil, nil
	seen := map[string]bool{}
	for i := lo; i < hi; i++ {
		for _, in := range c.reads[i] {
			at, made := c.made[in]
			if seen[in] || c.g.Init(in) != nil || made && at >= lo {
				continue
			}
			seen[in] = true
			if v := c.valueOf(in, made); v != nil {
				g.Inputs = append(g.Inputs, v)
			}
		}
		for _, o := range c.g.Nodes[i].Outputs {
			if c.last[o] >= hi && o != "" {
				g.Outputs = append(g.Outputs, c.valueOf(o, true))
			}
		}
	}
	g.Prune()
	return p
}

// valueOf describes a value that passes between parts: as the model declares it, nil
// when it is neither made by an operator nor an input.
func (c *cutter) valueOf(name string, made bool) *Value {
	for _, list := range [][]*Value{c.g.Outputs, c.g.Inputs} {
		for _, v := range list {
			if v.Name == name {
				return cloneValues([]*Value{v})[0]
			}
		}
	}
	if !made {
		return nil
	}
	return cloneValues([]*Value{c.values[name]})[0]
}
