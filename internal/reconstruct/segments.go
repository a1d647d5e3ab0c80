package reconstruct

import "github.com/fewbit/fewbit/internal/graph"

// plainRun is how many operators with weights that follow each other without a
// residual connection are one block: as many as an inverted bottleneck has.
const plainRun = 3

// Segment is a run of a graph's nodes that one value enters which quantization changes.
type Segment struct {
	Nodes []*graph.Node
	// In are the values that are read and made before, In order of reading; constants
	// are none of them.
	In []string
	// Outs are the values that quantization changes and that later nodes, or whoever
	// reads the graph's outputs, take. A block has one.
	Outs []string
	// Carry are the values made here that later nodes read but that quantization does
	// not change, such as masks and shapes.
	Carry []string
	// Weighted counts the nodes whose weights are quantized.
	Weighted int
	plain    bool // one node with a weight, no residual
}

// Segments cuts g, whose nodes are in order, where everything that quantization changes
// passes through one value: behind residual blocks, and in chains. weighted are the
// nodes whose weights are quantized; at an inner value nothing is cut. What follows
// the last weighted node's segment is left out.
func Segments(g *graph.Graph, weighted func(*graph.Node) bool, inner func(value string) bool) []*Segment {
	last := map[string]int{} // value -> index of the last node that reads it
	readers := map[string]int{}
	for i, n := range g.Nodes {
		for _, in := range n.Inputs {
			if last[in] = i; !integral[n.Op] {
				readers[in]++
			}
		}
	}
	changed := map[string]bool{}
	var cuts []*Segment
	at, live := &Segment{}, map[string]bool{}
	for i, n := range g.Nodes {
		at.Nodes = append(at.Nodes, n)
		hot := weighted(n)
		if hot {
			at.Weighted++
		}
		for _, in := range n.Inputs {
			hot = hot || changed[in] && !integral[n.Op]
		}
		for _, o := range n.Outputs {
			if changed[o] = hot; hot && last[o] > i {
				live[o] = true
			}
		}
		for _, in := range n.Inputs {
			if last[in] <= i {
				delete(live, in)
			}
		}
		if at.Weighted == 0 || len(live) > 1 {
			continue
		}
		if len(live) == 1 && !goodCut(g, i, live, readers, weighted, inner) {
			continue
		}
		cuts = append(cuts, at)
		at = &Segment{}
	}
	if len(at.Nodes) > 0 && at.Weighted > 0 {
		cuts = append(cuts, at)
	}
	for _, s := range cuts {
		s.plain = s.Weighted == 1 && !branches(s, readers)
	}
	cuts = join(cuts)
	for _, s := range cuts {
		s.connect(g, changed)
	}
	return cuts
}

// goodCut reports whether the one live value is where a block ends: a weighted node or
// several nodes read it next, so that activations and normalizations stay with the
// block before them.
func goodCut(g *graph.Graph, i int, live map[string]bool, readers map[string]int, weighted func(*graph.Node) bool, inner func(string) bool) bool {
	for v := range live {
		if inner(v) {
			return false
		}
		if readers[v] > 1 {
			return true
		}
		for _, n := range g.Nodes[i+1:] {
			for _, in := range n.Inputs {
				if in == v {
					return weighted(n)
				}
			}
		}
	}
	return true
}

// branches reports whether two nodes of s read one value.
func branches(s *Segment, readers map[string]int) bool {
	seen := map[string]bool{}
	for _, n := range s.Nodes {
		for _, in := range n.Inputs {
			if integral[n.Op] || readers[in] < 2 {
				continue
			}
			if seen[in] {
				return true
			}
			seen[in] = true
		}
	}
	return false
}

// join makes one block of up to plainRun plain segments that follow each other.
func join(cuts []*Segment) (out []*Segment) {
	for _, s := range cuts {
		if len(out) > 0 && s.plain && out[len(out)-1].plain && out[len(out)-1].Weighted < plainRun {
			p := out[len(out)-1]
			p.Nodes, p.Weighted = append(p.Nodes, s.Nodes...), p.Weighted+s.Weighted
			continue
		}
		out = append(out, s)
	}
	return out
}

// connect finds what enters and leaves.
func (s *Segment) connect(g *graph.Graph, changed map[string]bool) {
	made, seen := map[string]bool{}, map[string]bool{}
	inside := map[*graph.Node]bool{}
	for _, n := range s.Nodes {
		inside[n] = true
	}
	for _, n := range s.Nodes {
		for _, in := range n.Inputs {
			if in != "" && !made[in] && !seen[in] && g.Init(in) == nil {
				seen[in] = true
				s.In = append(s.In, in)
			}
		}
		for _, o := range n.Outputs {
			made[o] = true
		}
	}
	later := map[string]bool{}
	for _, o := range g.Outputs {
		later[o.Name] = true
	}
	read := map[string]bool{}
	for _, n := range g.Nodes {
		if !inside[n] {
			for _, in := range n.Inputs {
				read[in] = true
			}
		}
	}
	for _, n := range s.Nodes {
		for _, o := range n.Outputs {
			switch {
			case o == "":
			case changed[o] && (read[o] || later[o]):
				s.Outs = append(s.Outs, o)
			case read[o]:
				s.Carry = append(s.Carry, o)
			}
		}
	}
}
