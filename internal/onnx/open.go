// Package onnx reads and writes ONNX files without copying a weight: files are
// memory-mapped, tensors alias the mapping, and writing streams them out.
//
// An ONNX file is hostile input. Every count and size is bounded by the
// constants below before anything is allocated for it.
package onnx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/onnx/pb"
)

// Limits on a model file. Real models stay far below them; a file beyond one
// is refused with ErrLimit.
const (
	// MaxProtoBytes is protobuf's own limit for one message (2 GiB).
	MaxProtoBytes = 1<<31 - 1
	// MaxNodes and MaxInitializers count over the graph and all subgraphs.
	MaxNodes        = 1 << 20
	MaxInitializers = 1 << 20
	// MaxSubgraphDepth bounds If/Loop/Scan nesting.
	MaxSubgraphDepth = 16
	// MaxSmallBytes bounds all that is not tensor bytes or nodes (value
	// infos, metadata, functions), over the graph and all subgraphs.
	MaxSmallBytes = 64 << 20
	// MaxDecodedBytes bounds the heap that decoding takes: protobuf amplifies
	// small messages about 100x. A graph of 50,000 nodes takes 200 MiB.
	MaxDecodedBytes = 512 << 20
	// MaxNodeBytes bounds one node without the tensors in its attributes.
	MaxNodeBytes = 16 << 20
	// MaxExternalFiles bounds the distinct external data files of a model.
	MaxExternalFiles = 4096
	// MaxExternalReuse bounds how often tensors may share external bytes: all
	// tensors together are at most this many times the files.
	MaxExternalReuse = 8

	maxDecodeDepth = 64
)

// Errors of this package.
var (
	// ErrFormat: the bytes are not an ONNX model.
	ErrFormat = errors.New("not an ONNX model")
	// ErrLimit: the model exceeds a limit of this package.
	ErrLimit = errors.New("model exceeds a limit")
	// ErrExternal: external data is missing, unsafe or too short.
	ErrExternal = errors.New("bad external data")
)

// Field numbers of onnx.proto that the reader splits by hand.
const (
	fieldModelGraph       = 7
	fieldGraphNode        = 1
	fieldGraphInitializer = 5
	fieldNodeAttribute    = 5
	fieldAttributeTensor  = 5
	fieldAttributeGraph   = 6
	fieldTensorRaw        = 9
)

// File is an open model. Tensors of Proto alias the mapped files: they are
// read-only and valid until Close.
type File struct {
	Proto *pb.ModelProto
	// Bytes is the size of the model with its external data.
	Bytes int64
	// External lists the external data files, relative to the model.
	External []string

	maps  [][]byte
	owner uint32 // user of the model file
}

// Open maps the model at path and its external data (files beside it).
// Tensors stored externally come back inline, as RawData that aliases the map.
func Open(path string) (*File, error) {
	f := &File{}
	data, st, err := f.mapPath(path)
	if err != nil {
		return nil, err
	}
	f.owner = st.Uid
	m, err := Parse(data)
	if err == nil {
		f.Proto, f.Bytes = m, int64(len(data))
		err = f.resolveExternal(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return f, nil
}

// Unload lets go of the pages of the mapped files that were read; they are read
// again when they are needed. It only saves memory: another program that loads
// the same weights need not stand beside them.
func (f *File) Unload() {
	for _, m := range f.maps {
		_ = unix.Madvise(m, unix.MADV_DONTNEED) // advice
	}
}

// Close unmaps the files. Every tensor of Proto becomes invalid.
func (f *File) Close() error {
	var first error
	for _, m := range f.maps {
		if err := unix.Munmap(m); err != nil && first == nil {
			first = err
		}
	}
	f.maps, f.Proto = nil, nil
	return first
}

func (f *File) mapPath(path string) ([]byte, unix.Stat_t, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, unix.Stat_t{}, fmt.Errorf("%s: no such file", filepath.Base(path))
		}
		return nil, unix.Stat_t{}, fmt.Errorf("%s: cannot open: %w", filepath.Base(path), err)
	}
	return f.mapFD(fd, filepath.Base(path))
}

// mapFD maps a whole regular file and closes fd.
//
// The map is of the file as it lies: a file that someone truncates meanwhile
// ends the process with SIGBUS. Publish models by renaming, never in place.
func (f *File) mapFD(fd int, name string) ([]byte, unix.Stat_t, error) {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, fmt.Errorf("%s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, st, fmt.Errorf("%s: not a regular file", name)
	}
	if st.Size == 0 {
		return nil, st, fmt.Errorf("%s: %w: the file is empty", name, ErrFormat)
	}
	m, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, st, fmt.Errorf("%s: map: %w", name, os.NewSyscallError("mmap", err))
	}
	f.maps = append(f.maps, m)
	return m, st, nil
}

// Parse decodes a ModelProto. Raw tensor bytes alias data; the rest is copied.
func Parse(data []byte) (*pb.ModelProto, error) {
	if len(data) > MaxProtoBytes {
		return nil, fmt.Errorf("%w: %d bytes, protobuf ends at 2 GiB (use external data)", ErrLimit, len(data))
	}
	return parse(data, MaxDecodedBytes)
}

// parse is Parse with a heap limit of its own, for tests.
func parse(data []byte, limit int) (*pb.ModelProto, error) {
	p := parser{limit: limit}
	var graph *pb.GraphProto
	rest, err := p.split(data, func(num protowire.Number, v []byte) (bool, error) {
		if num != fieldModelGraph {
			return false, nil
		}
		if graph != nil {
			return false, fmt.Errorf("%w: two graphs", ErrFormat)
		}
		g, err := p.graph(v, 0)
		graph = g
		return true, err
	})
	if err != nil {
		return nil, err
	}
	if p.small += len(rest); p.small > MaxSmallBytes {
		return nil, fmt.Errorf("%w: more than %d bytes of descriptions", ErrLimit, MaxSmallBytes)
	}
	m := &pb.ModelProto{}
	if err := p.unmarshal(rest, m, "model"); err != nil {
		return nil, err
	}
	if graph == nil {
		return nil, fmt.Errorf("%w: it has no graph", ErrFormat)
	}
	m.Graph = graph
	return m, nil
}

// parser counts what it has seen over all subgraphs.
type parser struct{ nodes, inits, small, cost, limit int }

func (p *parser) graph(b []byte, depth int) (*pb.GraphProto, error) {
	if depth > MaxSubgraphDepth {
		return nil, fmt.Errorf("%w: subgraphs nested deeper than %d", ErrLimit, MaxSubgraphDepth)
	}
	g := &pb.GraphProto{}
	var nodes []*pb.NodeProto
	var inits []*pb.TensorProto
	rest, err := p.split(b, func(num protowire.Number, v []byte) (bool, error) {
		switch num {
		case fieldGraphNode:
			if p.nodes++; p.nodes > MaxNodes {
				return false, fmt.Errorf("%w: more than %d nodes", ErrLimit, MaxNodes)
			}
			n, err := p.node(v, depth)
			nodes = append(nodes, n)
			return true, err
		case fieldGraphInitializer:
			if p.inits++; p.inits > MaxInitializers {
				return false, fmt.Errorf("%w: more than %d initializers", ErrLimit, MaxInitializers)
			}
			t, err := p.tensor(v)
			inits = append(inits, t)
			return true, err
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	if p.small += len(rest); p.small > MaxSmallBytes {
		return nil, fmt.Errorf("%w: more than %d bytes of graph descriptions", ErrLimit, MaxSmallBytes)
	}
	if err := p.unmarshal(rest, g, "graph"); err != nil {
		return nil, err
	}
	g.Node, g.Initializer = nodes, inits
	return g, nil
}

func (p *parser) node(b []byte, depth int) (*pb.NodeProto, error) {
	n := &pb.NodeProto{}
	var attrs []*pb.AttributeProto
	rest, err := p.split(b, func(num protowire.Number, v []byte) (bool, error) {
		if num != fieldNodeAttribute {
			return false, nil
		}
		a, err := p.attribute(v, depth)
		attrs = append(attrs, a)
		return true, err
	})
	if err != nil {
		return nil, err
	}
	if len(rest) > MaxNodeBytes {
		return nil, fmt.Errorf("%w: a node of %d bytes", ErrLimit, len(rest))
	}
	if err := p.unmarshal(rest, n, "node"); err != nil {
		return nil, err
	}
	n.Attribute = attrs
	return n, nil
}

func (p *parser) attribute(b []byte, depth int) (*pb.AttributeProto, error) {
	a := &pb.AttributeProto{}
	var t *pb.TensorProto
	var g *pb.GraphProto
	rest, err := p.split(b, func(num protowire.Number, v []byte) (bool, error) {
		var err error
		switch num {
		case fieldAttributeTensor:
			if t != nil { // protobuf would merge them; runtimes need not agree
				return false, fmt.Errorf("%w: an attribute with two tensors", ErrFormat)
			}
			t, err = p.tensor(v)
			return true, err
		case fieldAttributeGraph:
			if g != nil {
				return false, fmt.Errorf("%w: an attribute with two graphs", ErrFormat)
			}
			g, err = p.graph(v, depth+1)
			return true, err
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	if len(rest) > MaxNodeBytes {
		return nil, fmt.Errorf("%w: an attribute of %d bytes", ErrLimit, len(rest))
	}
	if err := p.unmarshal(rest, a, "attribute"); err != nil {
		return nil, err
	}
	a.T, a.G = t, g
	return a, nil
}

func (p *parser) tensor(b []byte) (*pb.TensorProto, error) {
	t := &pb.TensorProto{}
	var raw []byte
	rest, err := p.split(b, func(num protowire.Number, v []byte) (bool, error) {
		if num != fieldTensorRaw {
			return false, nil
		}
		raw = v[:len(v):len(v)]
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	if err := p.unmarshal(rest, t, "tensor"); err != nil {
		return nil, err
	}
	t.RawData = raw
	return t, nil
}

// split walks the fields of a message. hit is called for each length-delimited
// field and says whether it took it; what it did not take is returned. When
// nothing was taken the result aliases b.
func (p *parser) split(b []byte, hit func(protowire.Number, []byte) (bool, error)) ([]byte, error) {
	var rest []byte
	taken := false
	all := b
	for off := 0; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, fmt.Errorf("%w: the bytes are no protobuf message; is it a text, an archive or another framework's file?", ErrFormat)
		}
		var size int
		took := false
		if typ == protowire.BytesType {
			v, k := protowire.ConsumeBytes(b[n:])
			if k < 0 {
				return nil, fmt.Errorf("%w: it ends in the middle of a field: truncated, or no protobuf message", ErrFormat)
			}
			var err error
			if took, err = hit(num, v); err != nil {
				return nil, err
			}
			size = n + k
		} else {
			k := protowire.ConsumeFieldValue(num, typ, b[n:])
			if k < 0 {
				return nil, fmt.Errorf("%w: the bytes are no protobuf message; is it a text, an archive or another framework's file?", ErrFormat)
			}
			size = n + k
		}
		if took && !taken {
			taken = true
			rest = append(rest, all[:off]...)
		} else if taken && !took {
			rest = append(rest, b[:size]...)
		}
		off += size
		b = b[size:]
	}
	if !taken {
		return all, nil
	}
	return rest, nil
}

var decode = proto.UnmarshalOptions{AllowPartial: true, RecursionLimit: maxDecodeDepth}
