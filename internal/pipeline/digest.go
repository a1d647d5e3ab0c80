package pipeline

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
)

type digest [sha256.Size]byte

// digests gives values digests of all that they are computed from: operators with
// their attributes, constants by content, the model's inputs by name. What the
// values are called counts for nothing, and what else the model computes neither, so
// that a value has one digest in each form of the model that computes it alike.
type digests struct {
	m     *graph.Model
	whole digest // stands for what is not looked into
	known map[string]digest
	maker map[string]*graph.Node
}

// newDigests returns the digests of m, which was made of the file with the digest whole.
func newDigests(m *graph.Model, whole string) *digests {
	d := &digests{m: m, whole: sha256.Sum256([]byte(whole)), known: map[string]digest{}, maker: map[string]*graph.Node{}}
	for _, n := range m.Graph.Nodes {
		for _, out := range n.Outputs {
			if out != "" {
				d.maker[out] = n
			}
		}
	}
	return d
}

// of returns the digest of a value. Nodes are in topological order, so that what a
// value needs is found by going back, without recursion.
func (d *digests) of(value string) (digest, error) {
	wanted := []string{value}
	for len(wanted) > 0 {
		v := wanted[len(wanted)-1]
		if _, ok := d.known[v]; ok {
			wanted = wanted[:len(wanted)-1]
			continue
		}
		n := d.maker[v]
		if n == nil || d.m.Graph.Init(v) != nil {
			d.known[v] = d.leaf(v)
			continue
		}
		missing := false
		for _, in := range n.Inputs {
			if _, ok := d.known[in]; !ok {
				wanted, missing = append(wanted, in), true
			}
		}
		if missing {
			continue
		}
		if err := d.node(n); err != nil {
			return digest{}, err
		}
	}
	return d.known[value], nil
}

// leaf is the digest of a constant, an input or an omitted value.
func (d *digests) leaf(name string) digest {
	h := sha256.New()
	if t := d.m.Graph.Init(name); t != nil {
		fmt.Fprintf(h, "constant %v %v\n", t.Type, t.Dims)
		h.Write(t.Data)
	} else {
		fmt.Fprintf(h, "input %q\n", name)
	}
	return digest(h.Sum(nil))
}

// node enters the digests of n's outputs.
func (d *digests) node(n *graph.Node) error {
	h := sha256.New()
	fmt.Fprintf(h, "node %q %q %d\n", n.Domain, n.Op, d.m.Opsets[n.Domain])
	attrs := slices.Clone(n.Attrs)
	slices.SortFunc(attrs, func(a, b *pb.AttributeProto) int { return strings.Compare(a.GetName(), b.GetName()) })
	for _, a := range attrs {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
		if err != nil {
			return fmt.Errorf("attribute %q of %q: %w", a.GetName(), n.Name, err)
		}
		putBytes(h, b)
		if a.GetG() != nil || len(a.GetGraphs()) > 0 { // its body may read any value
			fmt.Fprintf(h, "body of %q\n", n.Name)
			h.Write(d.whole[:])
		}
	}
	if d.m.Function(n.Domain, n.Op) != nil {
		h.Write(d.whole[:])
	}
	for _, in := range n.Inputs {
		k := d.known[in]
		h.Write(k[:])
	}
	sum := h.Sum(nil)
	for i, out := range n.Outputs {
		if out != "" {
			d.known[out] = sha256.Sum256(binary.LittleEndian.AppendUint32(slices.Clone(sum), uint32(i)))
		}
	}
	return nil
}

func putBytes(h hash.Hash, b []byte) {
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(b))))
	h.Write(b)
}
