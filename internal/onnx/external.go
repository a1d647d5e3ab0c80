package onnx

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// resolveExternal maps every external data file below dir and points the
// tensors at it. A location must be a relative path that stays below dir and
// passes through no symbolic link (ONNX specification, ExternalData.md; CVE-2022-25882
// and its successors are the reason for the care).
func (f *File) resolveExternal(dir string) error {
	root := -1
	defer func() {
		if root >= 0 {
			unix.Close(root)
		}
	}()
	files := map[string][]byte{}
	var mapped, used int64 // bytes of the files, bytes that tensors point at
	open := func(loc string) ([]byte, error) {
		if m, ok := files[loc]; ok {
			return m, nil
		}
		if len(files) >= MaxExternalFiles {
			return nil, fmt.Errorf("%w: more than %d files", ErrExternal, MaxExternalFiles)
		}
		if root < 0 {
			fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("%w: cannot open the model's folder", ErrExternal)
			}
			root = fd
		}
		fd, err := openBeneath(root, loc)
		if err != nil {
			return nil, fmt.Errorf("%w: %q: %v", ErrExternal, loc, err)
		}
		m, st, err := f.mapFD(fd, loc)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrExternal, err)
		}
		// Whoever may place a model can hard-link what he cannot read. A link
		// to a file of the model's own owner gives nothing away, and stores
		// that keep one copy of each blob are made of them.
		if st.Nlink > 1 && st.Uid != f.owner {
			return nil, fmt.Errorf("%w: %q is a hard link to a file of another user; copy it", ErrExternal, loc)
		}
		files[loc] = m
		mapped += int64(len(m))
		f.External = append(f.External, loc)
		f.Bytes += int64(len(m))
		return m, nil
	}
	visit := func(t *pb.TensorProto) error {
		if t.GetDataLocation() != pb.TensorProto_EXTERNAL {
			if len(t.ExternalData) > 0 {
				return fmt.Errorf("%w: tensor %q lists external data but is inline", ErrExternal, t.GetName())
			}
			return nil
		}
		raw, err := externalBytes(t, open)
		if err != nil {
			return err
		}
		if used += int64(len(raw)); used > MaxExternalReuse*mapped {
			return fmt.Errorf("%w: tensors share external bytes more than %d times over", ErrLimit, MaxExternalReuse)
		}
		t.RawData, t.ExternalData, t.DataLocation = raw, nil, nil
		return nil
	}
	if err := eachTensor(f.Proto.Graph, visit); err != nil {
		return err
	}
	for _, fn := range f.Proto.Functions {
		if err := eachTensor(&pb.GraphProto{Node: fn.Node}, visit); err != nil {
			return err
		}
	}
	return nil
}

func externalBytes(t *pb.TensorProto, open func(string) ([]byte, error)) ([]byte, error) {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: tensor %q: %s", ErrExternal, t.GetName(), fmt.Sprintf(format, a...))
	}
	if t.RawData != nil {
		return nil, bad("has inline bytes too")
	}
	loc, offset, length := "", int64(0), int64(-1)
	for _, e := range t.ExternalData {
		var err error
		switch k := e.GetKey(); k {
		case "location":
			loc = e.GetValue()
		case "offset":
			offset, err = strconv.ParseInt(e.GetValue(), 10, 64)
		case "length":
			length, err = strconv.ParseInt(e.GetValue(), 10, 64)
		case "checksum": // SHA-1 of the data; optional and not used by any runtime
		default:
			return nil, bad("unknown key %q", k)
		}
		if err != nil {
			return nil, bad("%s is not a number", e.GetKey())
		}
	}
	if err := checkLocation(loc); err != nil {
		return nil, bad("%v", err)
	}
	dt := tensor.DType(t.GetDataType())
	n, err := tensor.Elems(t.Dims)
	if err != nil || dt.Bits() == 0 {
		return nil, bad("type %v with dimensions %v cannot be external", dt, t.Dims)
	}
	want := dt.Bytes(n)
	if length < 0 {
		length = want
	}
	if length != want {
		return nil, bad("%d bytes declared, %v%v needs %d", length, dt, t.Dims, want)
	}
	if want == 0 {
		return []byte{}, nil
	}
	m, err := open(loc)
	if err != nil {
		return nil, err
	}
	if offset < 0 || offset > int64(len(m)) || length > int64(len(m))-offset {
		return nil, bad("%d bytes from offset %d lie past the end of %q (%d bytes)", length, offset, loc, len(m))
	}
	return m[offset : offset+length : offset+length], nil
}

func checkLocation(loc string) error {
	switch {
	case loc == "":
		return errors.New("no location")
	case len(loc) > 4096 || strings.ContainsRune(loc, 0):
		return errors.New("unusable location")
	case path.IsAbs(loc) || strings.Contains(loc, `\`):
		return fmt.Errorf("location %q is not a relative path", loc)
	}
	for _, part := range strings.Split(loc, "/") {
		if part == ".." {
			return fmt.Errorf("location %q leaves the model's folder", loc)
		}
	}
	return nil
}

// openBeneath opens a regular file below root, following no symbolic link.
func openBeneath(root int, loc string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(root, loc, &how)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		fd, err = walkBeneath(root, loc)
	}
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return -1, errors.New("it passes through a symbolic link or leaves the model's folder")
	case errors.Is(err, unix.ENOENT):
		return -1, errors.New("no such file beside the model")
	}
	return -1, err
}

// walkBeneath is openBeneath for kernels before 5.6 and sandboxes that forbid
// openat2: one component at a time, O_NOFOLLOW each.
func walkBeneath(root int, loc string) (int, error) {
	dir := root
	parts := strings.Split(path.Clean(loc), "/")
	for i, part := range parts {
		flags := unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOFOLLOW
		if i < len(parts)-1 {
			flags |= unix.O_DIRECTORY
		}
		fd, err := unix.Openat(dir, part, flags, 0)
		if dir != root {
			unix.Close(dir)
		}
		if err != nil {
			return -1, err
		}
		dir = fd
	}
	return dir, nil
}

// eachTensor visits the tensors of a graph: initializers, sparse initializers
// and the tensors in attributes, in subgraphs too.
func eachTensor(g *pb.GraphProto, visit func(*pb.TensorProto) error) error {
	for _, t := range g.GetInitializer() {
		if err := visit(t); err != nil {
			return err
		}
	}
	sparse := func(s *pb.SparseTensorProto) error {
		for _, t := range []*pb.TensorProto{s.GetValues(), s.GetIndices()} {
			if t != nil {
				if err := visit(t); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, s := range g.GetSparseInitializer() {
		if err := sparse(s); err != nil {
			return err
		}
	}
	for _, n := range g.GetNode() {
		for _, a := range n.GetAttribute() {
			ts := a.GetTensors()
			if a.T != nil {
				ts = append(ts[:len(ts):len(ts)], a.T)
			}
			for _, t := range ts {
				if err := visit(t); err != nil {
					return err
				}
			}
			if a.SparseTensor != nil {
				if err := sparse(a.SparseTensor); err != nil {
					return err
				}
			}
			gs := a.GetGraphs()
			if a.G != nil {
				gs = append(gs[:len(gs):len(gs)], a.G)
			}
			for _, sub := range gs {
				if err := eachTensor(sub, visit); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
