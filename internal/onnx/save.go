package onnx

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	// inlineLimit: a model whose message would pass it is written with
	// external data (protobuf ends at 2 GiB; some readers count signed).
	inlineLimit = 2<<30 - 1<<20
	// externalMin: smaller tensors stay inline, where shape inference needs them.
	externalMin = 1024
	// externalAlign is the page size: runtimes map large tensors in place.
	externalAlign = 4096
	writeBuffer   = 1 << 20
)

// SaveOptions configure Save.
type SaveOptions struct {
	// External writes the weights to NAME.data beside the model. It happens by
	// itself when the model would pass 2 GiB.
	External bool
}

// Save writes m to path: a temporary file in the same folder, synced and
// renamed, so that a crash leaves the old file or the new one. Tensor bytes are
// streamed from where they lie.
func Save(path string, m *pb.ModelProto, o SaveOptions) error {
	size := int64(proto.Size(m))
	if size <= inlineLimit && !o.External {
		return atomically(path, func(w io.Writer) error { return Write(w, m) })
	}
	return saveExternal(path, m)
}

func saveExternal(path string, m *pb.ModelProto) error {
	dataPath := path + ".data"
	loc := filepath.Base(dataPath)
	var moved []*pb.TensorProto
	var raws [][]byte
	defer func() { // the caller's model stays as it was
		for i, t := range moved {
			t.RawData, t.ExternalData, t.DataLocation = raws[i], nil, nil
		}
	}()
	err := atomically(dataPath, func(w io.Writer) error {
		var off int64
		var pad [externalAlign]byte
		for _, t := range m.Graph.Initializer {
			if len(t.RawData) < externalMin {
				continue
			}
			if r := off % externalAlign; r != 0 {
				if _, err := w.Write(pad[:externalAlign-r]); err != nil {
					return err
				}
				off += externalAlign - r
			}
			if _, err := w.Write(t.RawData); err != nil {
				return err
			}
			moved, raws = append(moved, t), append(raws, t.RawData)
			n := int64(len(t.RawData))
			t.RawData, t.DataLocation = nil, pb.TensorProto_EXTERNAL.Enum()
			t.ExternalData = []*pb.StringStringEntryProto{
				entry("location", loc), entry("offset", strconv.FormatInt(off, 10)), entry("length", strconv.FormatInt(n, 10)),
			}
			off += n
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := atomically(path, func(w io.Writer) error { return Write(w, m) }); err != nil {
		os.Remove(dataPath)
		return err
	}
	return nil
}

func entry(k, v string) *pb.StringStringEntryProto {
	return &pb.StringStringEntryProto{Key: &k, Value: &v}
}

// atomically writes through a temporary file in path's folder: fsync, rename,
// fsync of the folder. On any error nothing is left behind.
func atomically(path string, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".fewbit-*.tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), cause(err))
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", filepath.Base(path), cause(err))
		}
	}()
	bw := bufio.NewWriterSize(f, writeBuffer)
	if err = write(bw); err != nil {
		return err
	}
	if err = bw.Flush(); err != nil {
		return err
	}
	if err = f.Chmod(0o644); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	if d, derr := os.Open(dir); derr == nil {
		d.Sync() // best effort: some file systems refuse to sync a folder
		d.Close()
	}
	return nil
}

// cause strips the path from an *os.PathError: callers name the file themselves.
func cause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		return le.Err
	}
	return err
}

// Write streams m as one protobuf message. Initializers' raw bytes go from
// where they lie to w; the rest is marshalled (deterministically: the same
// model gives the same bytes).
func Write(w io.Writer, m *pb.ModelProto) error {
	g := m.GetGraph()
	if g == nil {
		return fmt.Errorf("%w: it has no graph", ErrFormat)
	}
	shell := shallowModel(m)
	shell.Graph = nil
	head, err := encode.Marshal(shell)
	if err != nil {
		return err
	}
	gshell := shallowGraph(g)
	gshell.Initializer = nil
	ghead, err := encode.Marshal(gshell)
	if err != nil {
		return err
	}
	size := len(ghead)
	heads := make([][]byte, len(g.Initializer))
	for i, t := range g.Initializer {
		raw := t.RawData
		t.RawData = nil
		tb, err := encode.Marshal(t)
		t.RawData = raw
		if err != nil {
			return err
		}
		n := len(tb)
		if raw != nil {
			n += protowire.SizeTag(fieldTensorRaw) + protowire.SizeBytes(len(raw))
		}
		h := protowire.AppendTag(nil, fieldGraphInitializer, protowire.BytesType)
		h = protowire.AppendVarint(h, uint64(n))
		h = append(h, tb...)
		if raw != nil {
			h = protowire.AppendTag(h, fieldTensorRaw, protowire.BytesType)
			h = protowire.AppendVarint(h, uint64(len(raw)))
		}
		heads[i] = h
		size += len(h) + len(raw)
	}
	if len(head)+size > MaxProtoBytes {
		return fmt.Errorf("%w: the message would pass 2 GiB; save it with external data", ErrLimit)
	}
	gtag := protowire.AppendTag(nil, fieldModelGraph, protowire.BytesType)
	gtag = protowire.AppendVarint(gtag, uint64(size))
	for _, b := range [][]byte{head, gtag, ghead} {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	for i, t := range g.Initializer {
		if _, err := w.Write(heads[i]); err != nil {
			return err
		}
		if _, err := w.Write(t.RawData); err != nil {
			return err
		}
	}
	return nil
}

var encode = proto.MarshalOptions{Deterministic: true, AllowPartial: true}

// shallowModel and shallowGraph copy the top-level fields only, so that Write
// can drop one without touching the caller's message.
func shallowModel(m *pb.ModelProto) *pb.ModelProto {
	c := &pb.ModelProto{}
	shallow(c, m)
	return c
}

func shallowGraph(g *pb.GraphProto) *pb.GraphProto {
	c := &pb.GraphProto{}
	shallow(c, g)
	return c
}
