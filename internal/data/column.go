package data

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zip"
)

// column reads the rows of one array, in ascending order unless it is stored
// without compression.
type column struct {
	name string // without .npy
	*npyHeader

	// Stored: the elements lie at data in at.
	at   io.ReaderAt
	data int64

	// Deflated: a stream that stands before row next.
	entry *zip.File
	raw   io.ReadCloser
	buf   *bufio.Reader
	next  int
}

// streamBuffer is the read buffer of a deflated array.
const streamBuffer = 64 << 10

// npyColumn returns the column of the .npy within [off, off+size) of r.
func npyColumn(r io.ReaderAt, off, size int64, name string) (*column, error) {
	h, err := readNPYHeader(io.NewSectionReader(r, off, size))
	if err != nil {
		return nil, err
	}
	if got := size - h.dataAt; got != h.dataSize() {
		return nil, wrongSize(h, got)
	}
	return &column{name: name, npyHeader: h, at: r, data: off + h.dataAt}, nil
}

func wrongSize(h *npyHeader, got int64) error {
	return fmt.Errorf("%w: it holds %d bytes of elements, its header (%v) promises %d; it was cut off or damaged, write it again", ErrFormat, got, h, h.dataSize())
}

// zipColumn returns the column of an archive's entry.
func zipColumn(r io.ReaderAt, e *zip.File, name string) (*column, error) {
	switch e.Method {
	case zip.Store:
		off, err := e.DataOffset()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if e.CompressedSize64 != e.UncompressedSize64 || e.UncompressedSize64 > 1<<62 {
			return nil, fmt.Errorf("%w: a stored entry whose sizes differ", ErrFormat)
		}
		return npyColumn(r, off, int64(e.UncompressedSize64), name)
	case zip.Deflate:
		c := &column{name: name, entry: e}
		if err := c.rewind(); err != nil {
			return nil, err
		}
		if got := int64(e.UncompressedSize64) - c.dataAt; got != c.dataSize() {
			c.close()
			return nil, wrongSize(c.npyHeader, got)
		}
		return c, nil
	}
	return nil, fmt.Errorf("%w: compression method %d; save with np.savez or np.savez_compressed", ErrUnsupported, e.Method)
}

// rewind makes row 0 the next one.
func (c *column) rewind() error {
	if c.entry == nil || (c.raw != nil && c.next == 0) {
		return nil
	}
	c.close()
	raw, err := c.entry.Open()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if c.buf == nil {
		c.buf = bufio.NewReaderSize(raw, streamBuffer)
	} else {
		c.buf.Reset(raw)
	}
	h, err := readNPYHeader(c.buf)
	if err != nil {
		raw.Close()
		return err
	}
	c.raw, c.npyHeader, c.next = raw, h, 0
	return nil
}

func (c *column) close() {
	if c.raw != nil {
		c.raw.Close()
		c.raw = nil
	}
}

// read fills dst, of rowSize bytes, with row i.
func (c *column) read(i int, dst []byte) error {
	if c.entry == nil {
		if _, err := c.at.ReadAt(dst, c.data+int64(i)*c.rowSize); err != nil {
			return fmt.Errorf("%w: array %q, row %d cannot be read", ErrFormat, c.name, i)
		}
		return nil
	}
	if i < c.next || c.raw == nil {
		if err := c.rewind(); err != nil {
			return err
		}
	}
	skip := int64(i-c.next) * c.rowSize
	if _, err := io.CopyN(io.Discard, c.buf, skip); err != nil {
		return c.damaged(i)
	}
	c.next = i
	if _, err := io.ReadFull(c.buf, dst); err != nil {
		return c.damaged(i)
	}
	c.next++
	if c.next == c.rows() { // reach the end, where the checksum is compared
		if _, err := c.buf.ReadByte(); !errors.Is(err, io.EOF) {
			return c.damaged(i)
		}
	}
	return nil
}

func (c *column) damaged(i int) error {
	c.close()
	return fmt.Errorf("%w: array %q is damaged or cut off before row %d; write the file again", ErrFormat, c.name, i+1)
}
