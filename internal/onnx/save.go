package onnx

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/fewbit/fewbit/internal/atomicfile"
	"github.com/fewbit/fewbit/internal/bare"

	"golang.org/x/sys/unix"

	"github.com/fewbit/fewbit/internal/onnx/pb"
)

// inlineLimit: a model whose message would pass it is written with external
// data (protobuf ends at 2 GiB; some readers count signed). A variable, so that
// tests need no model of that size.
var inlineLimit int64 = 2<<30 - 1<<20

const (
	// externalMin: smaller tensors stay inline, where shape inference needs them.
	externalMin = 1024
	// externalAlign is the page size: runtimes map large tensors in place.
	externalAlign = 4096
	// block is what is written at a time, but for a file's end: where it is a
	// large page of the processor and aligned to one, Linux keeps it in memory in one
	// piece, and who maps the file needs fewer translations of addresses.
	block      = 2 << 20
	flushEvery = 16 << 20
)

// SaveOptions configure Save.
type SaveOptions struct {
	// External writes the weights to NAME.data beside the model. It happens by
	// itself when the model would pass 2 GiB.
	External bool
	// Scratch leaves out what makes a file survive a crash: for files that are
	// removed again by the one who wrote them.
	Scratch bool
	// Release is called after every 16 MiB that were written; nil is not. Who
	// maps what is written may let go of its pages there.
	Release func()
}

// Save writes m to path: a temporary file in the same folder, synced and
// renamed, so that a crash leaves the old file or the new one. Tensor bytes are
// streamed from where they lie; m is only read.
//
// With external data there are two files, and the data comes first: a crash
// between them leaves the old model beside the new data, so publish such a
// model in a folder of its own.
func Save(path string, m *pb.ModelProto, o SaveOptions) error {
	if !o.External {
		c, err := encodeModel(m)
		if err != nil {
			return fmt.Errorf("write %s: %w", filepath.Base(path), err)
		}
		if c.size <= inlineLimit {
			return atomically(path, c.writeTo, o)
		}
	}
	return saveExternal(path, m, o)
}

// saveExternal moves the large initializers of the main graph to path+".data".
// Tensors in attributes and subgraphs stay in the message.
func saveExternal(path string, m *pb.ModelProto, o SaveOptions) error {
	if m.GetGraph() == nil {
		return fmt.Errorf("write %s: %w: it has no graph", filepath.Base(path), ErrFormat)
	}
	dataPath := path + ".data"
	loc := filepath.Base(dataPath)
	out, g := &pb.ModelProto{}, &pb.GraphProto{}
	shallow(out, m)
	shallow(g, m.Graph)
	out.Graph = g
	g.Initializer = make([]*pb.TensorProto, len(m.Graph.Initializer))
	var moved [][]byte
	var pads []int64
	var off int64
	for i, t := range m.Graph.Initializer {
		g.Initializer[i] = t
		if len(t.RawData) < externalMin {
			continue
		}
		pad := (externalAlign - off%externalAlign) % externalAlign
		off += pad
		n := int64(len(t.RawData))
		e := &pb.TensorProto{}
		shallow(e, t)
		e.RawData, e.DataLocation = nil, pb.TensorProto_EXTERNAL.Enum()
		e.ExternalData = []*pb.StringStringEntryProto{
			entry("location", loc), entry("offset", strconv.FormatInt(off, 10)), entry("length", strconv.FormatInt(n, 10)),
		}
		g.Initializer[i] = e
		moved, pads = append(moved, t.RawData), append(pads, pad)
		off += n
	}
	c, err := encodeModel(out)
	if err == nil && c.size > inlineLimit {
		err = fmt.Errorf("%w: %d bytes are left beside the external data (attributes, subgraphs), protobuf ends at 2 GiB", ErrLimit, c.size)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if len(moved) == 0 { // nothing to move: an empty data file would not open
		return atomically(path, c.writeTo, o)
	}
	data, err := stage(dataPath, o, func(w io.Writer) error {
		var zeros [externalAlign]byte
		for i, raw := range moved {
			if _, err := w.Write(zeros[:pads[i]]); err != nil {
				return err
			}
			if _, err := w.Write(raw); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	model, err := stage(path, o, c.writeTo)
	if err != nil {
		data.drop()
		return err
	}
	if err := data.publish(); err != nil {
		model.drop()
		return err
	}
	return model.publish()
}

func entry(k, v string) *pb.StringStringEntryProto {
	return &pb.StringStringEntryProto{Key: &k, Value: &v}
}

// atomically writes path through a temporary file beside it. On any error
// nothing is left behind and what was at path is untouched.
func atomically(path string, write func(io.Writer) error, o SaveOptions) error {
	s, err := stage(path, o, write)
	if err != nil {
		return err
	}
	return s.publish()
}

// staged is a complete temporary file, synced or not, not yet under its name.
type staged struct {
	tmp, path string
	sync      bool
}

func stage(path string, o SaveOptions, write func(io.Writer) error) (s staged, err error) {
	sync := !o.Scratch
	f, err := os.CreateTemp(filepath.Dir(path), ".fewbit-*.tmp")
	if err != nil {
		return s, fmt.Errorf("write %s: %w", filepath.Base(path), bare.Error(err))
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", filepath.Base(path), bare.Error(err))
		}
	}()
	bw := newBlocks(&flusher{f: f, sync: sync, release: o.Release})
	if err = write(bw); err != nil {
		return s, err
	}
	if err = bw.Flush(); err != nil {
		return s, err
	}
	if err = f.Chmod(0o644); err != nil {
		return s, err
	}
	if sync {
		if err = f.Sync(); err != nil {
			return s, err
		}
	}
	return staged{f.Name(), path, sync}, f.Close()
}

// blocks hands on whole blocks, and what is left with Flush. A bufio.Writer alone passes on
// what is larger than its buffer as it comes, and what follows is not aligned then.
type blocks struct{ *bufio.Writer }

func newBlocks(w io.Writer) blocks { return blocks{bufio.NewWriterSize(w, block)} }

func (w blocks) Write(b []byte) (int, error) {
	total := 0
	for len(b) > 0 {
		n, err := w.Writer.Write(b[:min(len(b), block)])
		total += n
		if err != nil {
			return total, err
		}
		b = b[n:]
	}
	return total, nil
}

// flusher starts writing pages to the disk while more are produced, so that the
// final sync waits for the last of them only.
type flusher struct {
	f             *os.File
	sync          bool
	release       func()
	done, started int64
	released      int64
}

func (w *flusher) Write(b []byte) (int, error) {
	total := 0
	for len(b) > 0 {
		n, err := w.f.Write(b[:min(len(b), flushEvery)])
		total += n
		w.done += int64(n)
		if err != nil {
			return total, err
		}
		b = b[n:]
		if w.release != nil && w.done-w.released >= flushEvery {
			w.released = w.done
			w.release()
		}
		if w.sync && w.done-w.started >= flushEvery {
			// A hint: where the file system has no such call, sync does it all.
			_ = unix.SyncFileRange(int(w.f.Fd()), w.started, w.done-w.started, unix.SYNC_FILE_RANGE_WRITE)
			w.started = w.done
		}
	}
	return total, nil
}

// publish renames the file to its name and syncs the folder.
func (s staged) publish() error {
	if err := os.Rename(s.tmp, s.path); err != nil {
		s.drop()
		return fmt.Errorf("write %s: %w", filepath.Base(s.path), bare.Error(err))
	}
	if !s.sync {
		return nil
	}
	_ = atomicfile.SyncDir(filepath.Dir(s.path)) // the file is in its place all the same
	return nil
}

func (s staged) drop() { os.Remove(s.tmp) }
