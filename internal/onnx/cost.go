package onnx

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// What decoded protobuf takes on the heap, about (a two-byte message becomes a
// struct of 64 to 320 bytes). Tensors that this package aliases cost nothing.
const (
	costMessage = 320
	costString  = 32 // header and allocation, besides the bytes
	costVarint  = 8
)

// unmarshal decodes b after its cost has been found to fit what is left.
func (p *parser) unmarshal(b []byte, m proto.Message, what string) error {
	if err := p.charge(b, m.ProtoReflect().Descriptor(), 0); err != nil {
		return err
	}
	if err := decode.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: bad %s message", ErrFormat, what)
	}
	return nil
}

// spend counts n bytes of heap.
func (p *parser) spend(n int) error {
	if p.cost += n; p.cost > p.limit {
		return fmt.Errorf("%w: its graph descriptions need more than %d MiB of memory", ErrLimit, p.limit>>20)
	}
	return nil
}

// charge walks the encoded message b as a decoder would and spends what it
// will allocate. Malformed input is left for the decoder to refuse.
func (p *parser) charge(b []byte, md protoreflect.MessageDescriptor, depth int) error {
	if depth > maxDecodeDepth {
		return fmt.Errorf("%w: messages nested deeper than %d", ErrLimit, maxDecodeDepth)
	}
	if err := p.spend(costMessage); err != nil {
		return err
	}
	fields := md.Fields()
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		k := protowire.ConsumeFieldValue(num, typ, b[n:])
		if k < 0 {
			return nil
		}
		value := b[n : n+k]
		b = b[n+k:]
		fd := fields.ByNumber(num)
		cost := costVarint
		switch {
		case fd == nil:
			cost = n + k // kept as unknown bytes
		case typ != protowire.BytesType:
		case fd.Kind() == protoreflect.MessageKind:
			v, _ := protowire.ConsumeBytes(value)
			if err := p.charge(v, fd.Message(), depth+1); err != nil {
				return err
			}
			cost = costVarint // the pointer
		case fd.Kind() == protoreflect.StringKind, fd.Kind() == protoreflect.BytesKind:
			cost = costString + len(value)
		case fd.Kind() == protoreflect.FloatKind, fd.Kind() == protoreflect.DoubleKind:
			// Packed floats take what they take in the file. Older exporters
			// store weights so; the file's own size bounds them.
			cost = 0
		default: // packed varints, from one byte each
			v, _ := protowire.ConsumeBytes(value)
			cost = costVarint * len(v)
		}
		if err := p.spend(cost); err != nil {
			return err
		}
	}
	return nil
}
