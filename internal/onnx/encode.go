package onnx

import (
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
)

// streamMin is the size from which a tensor's bytes are streamed from where
// they lie; smaller ones are copied into the message around them.
const streamMin = 4096

// Write streams m as one protobuf message. The raw bytes of tensors (of
// initializers and of attributes, in subgraphs too) go from where they lie to
// w; the rest is marshalled, deterministically: the same model gives the same
// bytes. m is only read.
func Write(w io.Writer, m *pb.ModelProto) error {
	c, err := encodeModel(m)
	if err != nil {
		return err
	}
	if c.size > MaxProtoBytes {
		return fmt.Errorf("%w: the message would take %d bytes, protobuf ends at 2 GiB; save it with external data", ErrLimit, c.size)
	}
	return c.writeTo(w)
}

// chunks is an encoded message in pieces, some of which alias tensors.
type chunks struct {
	parts [][]byte
	size  int64
	open  bool // the last part is ours to append to
}

func (c *chunks) writeTo(w io.Writer) error {
	for _, b := range c.parts {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// bytes appends a copy of b.
func (c *chunks) bytes(b ...byte) {
	if !c.open {
		c.parts, c.open = append(c.parts, nil), true
	}
	last := &c.parts[len(c.parts)-1]
	*last = append(*last, b...)
	c.size += int64(len(b))
}

// alias appends b itself.
func (c *chunks) alias(b []byte) {
	c.parts, c.open = append(c.parts, b), false
	c.size += int64(len(b))
}

// head appends the tag and length of a length-delimited field.
func (c *chunks) head(num protowire.Number, size int64) {
	var b [20]byte
	h := protowire.AppendTag(b[:0], num, protowire.BytesType)
	c.bytes(protowire.AppendVarint(h, uint64(size))...)
}

// message appends a field that holds the message sub.
func (c *chunks) message(num protowire.Number, sub *chunks) {
	c.head(num, sub.size)
	for _, p := range sub.parts {
		if len(p) >= streamMin {
			c.alias(p)
		} else {
			c.bytes(p...)
		}
	}
}

// marshal appends all of m.
func (c *chunks) marshal(m proto.Message) error {
	b, err := encode.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	c.bytes(b...)
	return nil
}

var encode = proto.MarshalOptions{Deterministic: true, AllowPartial: true}

func encodeModel(m *pb.ModelProto) (*chunks, error) {
	if m.GetGraph() == nil {
		return nil, fmt.Errorf("%w: it has no graph", ErrFormat)
	}
	shell := &pb.ModelProto{}
	shallow(shell, m)
	shell.Graph = nil
	c := &chunks{}
	if err := c.marshal(shell); err != nil {
		return nil, err
	}
	g, err := encodeGraph(m.Graph)
	if err != nil {
		return nil, err
	}
	c.message(fieldModelGraph, g)
	return c, nil
}

func encodeGraph(g *pb.GraphProto) (*chunks, error) {
	shell := &pb.GraphProto{}
	shallow(shell, g)
	shell.Node, shell.Initializer = nil, nil
	c := &chunks{}
	if err := c.marshal(shell); err != nil {
		return nil, err
	}
	for _, n := range g.Node {
		sub, err := encodeNode(n)
		if err != nil {
			return nil, err
		}
		c.message(fieldGraphNode, sub)
	}
	for _, t := range g.Initializer {
		sub, err := encodeTensor(t)
		if err != nil {
			return nil, err
		}
		c.message(fieldGraphInitializer, sub)
	}
	return c, nil
}

func encodeNode(n *pb.NodeProto) (*chunks, error) {
	c := &chunks{}
	heavy := false
	for _, a := range n.Attribute {
		heavy = heavy || a.G != nil || (a.T != nil && len(a.T.RawData) >= streamMin)
	}
	if !heavy {
		return c, c.marshal(n)
	}
	shell := &pb.NodeProto{}
	shallow(shell, n)
	shell.Attribute = nil
	if err := c.marshal(shell); err != nil {
		return nil, err
	}
	for _, a := range n.Attribute {
		sub, err := encodeAttribute(a)
		if err != nil {
			return nil, err
		}
		c.message(fieldNodeAttribute, sub)
	}
	return c, nil
}

func encodeAttribute(a *pb.AttributeProto) (*chunks, error) {
	c := &chunks{}
	if a.G == nil && a.T == nil {
		return c, c.marshal(a)
	}
	shell := &pb.AttributeProto{}
	shallow(shell, a)
	shell.T, shell.G = nil, nil
	if err := c.marshal(shell); err != nil {
		return nil, err
	}
	if a.T != nil {
		sub, err := encodeTensor(a.T)
		if err != nil {
			return nil, err
		}
		c.message(fieldAttributeTensor, sub)
	}
	if a.G != nil {
		sub, err := encodeGraph(a.G)
		if err != nil {
			return nil, err
		}
		c.message(fieldAttributeGraph, sub)
	}
	return c, nil
}

func encodeTensor(t *pb.TensorProto) (*chunks, error) {
	c := &chunks{}
	if len(t.RawData) < streamMin {
		return c, c.marshal(t)
	}
	shell := &pb.TensorProto{}
	shallow(shell, t)
	shell.RawData = nil
	if err := c.marshal(shell); err != nil {
		return nil, err
	}
	c.head(fieldTensorRaw, int64(len(t.RawData)))
	c.alias(t.RawData)
	return c, nil
}
