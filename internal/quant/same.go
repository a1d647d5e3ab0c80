package quant

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
)

// sameValues finds one name for values that are computed in the same way:
// exporters write the mask of each layer anew.
type sameValues struct {
	g     *graph.Graph
	ix    *graph.Index
	names map[string]string // value -> the name
	first map[string]string // how it is computed -> the name
}

func newSameValues(g *graph.Graph) *sameValues {
	return &sameValues{g: g, ix: g.Index(), names: map[string]string{}, first: map[string]string{}}
}

// maxSameDepth bounds how far values are followed back, and maxSameConstant the
// elements of constants that are compared.
const (
	maxSameDepth    = 32
	maxSameConstant = 64
)

// name returns the first value that was asked for and is computed as this one is.
func (s *sameValues) name(value string) string { return s.at(value, maxSameDepth) }

func (s *sameValues) at(value string, depth int) string {
	if n, ok := s.names[value]; ok || value == "" || depth == 0 {
		if !ok {
			n = value
		}
		return n
	}
	key := s.key(value, depth)
	name, ok := s.first[key]
	if !ok || key == "" {
		name = value
	}
	if !ok && key != "" {
		s.first[key] = name
	}
	s.names[value] = name
	return name
}

// key tells how value is computed; "" for what nothing else can be the same as.
func (s *sameValues) key(value string, depth int) string {
	if t := s.g.Init(value); t != nil {
		if t.Len() > maxSameConstant {
			return ""
		}
		return fmt.Sprintf("= %v%v%q", t.Type, t.Dims, t.Data)
	}
	n := s.ix.Producer(value)
	if n == nil || len(n.Outputs) != 1 || n.HasSubgraph() || n.Domain != graph.DomainONNX || strings.HasPrefix(n.Op, "Random") || n.Op == "Bernoulli" || n.Op == "Multinomial" {
		return ""
	}
	var b strings.Builder
	b.WriteString(n.Op)
	for _, in := range n.Inputs {
		fmt.Fprintf(&b, " %q", s.at(in, depth-1))
	}
	for _, a := range n.Attrs {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
		if err != nil {
			return ""
		}
		fmt.Fprintf(&b, " =%q", raw)
	}
	return b.String()
}
