package capture

import (
	"archive/zip"
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Export writes the samples of a snapshot as an .npz, which is not encrypted:
// one array for each input, first axis = samples. Inputs of two dimensions and
// integers (token ids and their masks) that differ in length are filled up with
// zeros on the right; others have to agree.
type Export struct {
	r      *Reader
	file   io.Closer // of the snapshot, when it is the export's
	inputs []column
}

// column is one array of the .npz.
type column struct {
	name  string
	dtype tensor.DType
	dims  []int64 // of one sample, without the batch
	fills bool    // shorter samples are filled up
}

// numpyTypes are the types that an .npy can hold.
var numpyTypes = map[tensor.DType]string{
	tensor.Float32: "<f4", tensor.Float64: "<f8", tensor.Float16: "<f2", tensor.Bool: "|b1",
	tensor.Int8: "|i1", tensor.Int16: "<i2", tensor.Int32: "<i4", tensor.Int64: "<i8",
	tensor.Uint8: "|u1", tensor.Uint16: "<u2", tensor.Uint32: "<u4", tensor.Uint64: "<u8",
}

// NewExport reads every sample once to learn their shapes.
// Errors: ErrRagged, ErrFormat.
func NewExport(r *Reader) (*Export, error) {
	e := &Export{r: r}
	for i := range r.Len() {
		s, err := r.Sample(i)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			for name, t := range s.Feeds {
				if numpyTypes[t.Type] == "" || len(t.Dims) == 0 || t.Dims[0] != 1 {
					return nil, fmt.Errorf("%w: input %q is %v%v, which no .npz of samples can hold", ErrRagged, name, t.Type, t.Dims)
				}
				e.inputs = append(e.inputs, column{name, t.Type, slices.Clone(t.Dims[1:]), len(t.Dims) == 2 && (t.Type == tensor.Int64 || t.Type == tensor.Int32)})
			}
			slices.SortFunc(e.inputs, func(a, b column) int { return strings.Compare(a.name, b.name) })
		}
		for j := range e.inputs {
			c := &e.inputs[j]
			t := s.Feeds[c.name]
			if t == nil || t.Type != c.dtype || len(t.Dims) != len(c.dims)+1 || t.Dims[0] != 1 {
				return nil, fmt.Errorf("%w: sample %d has another input %q than the first", ErrRagged, i, c.name)
			}
			switch {
			case slices.Equal(t.Dims[1:], c.dims):
			case c.fills:
				c.dims[0] = max(c.dims[0], t.Dims[1])
			default:
				return nil, fmt.Errorf("%w: input %q is %v in sample %d and %v in the first; calibrate with \"captured\", which needs no common shape", ErrRagged, c.name, t.Dims[1:], i, c.dims)
			}
		}
	}
	return e, nil
}

// Export makes an Export of a model's samples; close it.
// Errors: those of Snapshot and NewExport.
func (s *Store) Export(model string) (*Export, error) {
	f, err := os.CreateTemp(s.dir, hidden+"export-*")
	if err != nil {
		return nil, noPath(err)
	}
	_ = os.Remove(f.Name()) // it lives as long as it is open
	e, err := s.export(model, f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	e.file = f
	return e, nil
}

func (s *Store) export(model string, f *os.File) (*Export, error) {
	if _, err := s.Snapshot(model, f); err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, noPath(err)
	}
	r, err := NewReader(f, size, s.key)
	if err != nil {
		return nil, err
	}
	return NewExport(r)
}

// Close lets go of what Store.Export made.
func (e *Export) Close() error {
	if e.file == nil {
		return nil
	}
	return e.file.Close()
}

// WriteTo writes the .npz.
func (e *Export) WriteTo(w io.Writer) (int64, error) {
	count := &counter{w: w}
	z := zip.NewWriter(count)
	for _, c := range e.inputs {
		f, err := z.CreateHeader(&zip.FileHeader{Name: c.name + ".npy", Method: zip.Store})
		if err != nil {
			return count.n, fmt.Errorf("write .npz: %w", err)
		}
		if err := e.column(f, c); err != nil {
			return count.n, err
		}
	}
	if err := z.Close(); err != nil {
		return count.n, fmt.Errorf("write .npz: %w", err)
	}
	return count.n, nil
}

// npyAlign is what the header of an .npy is filled up to (numpy.lib.format).
const npyAlign = 64

func (e *Export) column(w io.Writer, c column) error {
	out := bufio.NewWriterSize(w, 256<<10)
	dims := make([]string, 0, len(c.dims)+1)
	for _, d := range append([]int64{int64(e.r.Len())}, c.dims...) {
		dims = append(dims, fmt.Sprint(d))
	}
	head := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s,), }", numpyTypes[c.dtype], strings.Join(dims, ", "))
	const before = 10 // magic, version, length
	head += strings.Repeat(" ", npyAlign-1-(before+len(head))%npyAlign) + "\n"
	out.WriteString("\x93NUMPY\x01\x00")
	out.Write(binary.LittleEndian.AppendUint16(nil, uint16(len(head))))
	out.WriteString(head)
	elems, err := tensor.Elems(c.dims)
	if err != nil {
		return err
	}
	size := int(c.dtype.Bytes(elems))
	zeros := make([]byte, size)
	for i := range e.r.Len() {
		s, err := e.r.Sample(i)
		if err != nil {
			return err
		}
		b := s.Feeds[c.name].Data
		out.Write(b)
		out.Write(zeros[:size-len(b)])
	}
	if err := out.Flush(); err != nil { // the first error of all the writes
		return fmt.Errorf("write .npz: %w", err)
	}
	return nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}
