package http

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/gin-gonic/gin"
	"golang.org/x/sys/unix"
)

// spoolFrom is how much of a body stays in memory; a longer one goes to a file, so much
// at a time.
const spoolFrom = 1 << 20

// spooled is a whole body: in memory when it is short, else in a file that has no name
// any more. What is read of b is let go of by passed, so that a long body is not
// resident.
type spooled struct {
	b    []byte // valid until unmap
	buf  *buffer
	file *os.File // nil: in memory
	maps bool     // b is the file, mapped
	gone int      // of b, what passed has let go of
}

// spool reads a body as readBody does.
func (s *Server) spool(c *gin.Context, limit int64, charge func(n int) error) (*spooled, error) {
	p := &spooled{buf: getBuffer()}
	if err := p.read(c.Request, s.cfg.SpoolDir, limit, charge); err != nil {
		p.close()
		return nil, err
	}
	if p.b != nil {
		arrived(c)
	}
	return p, nil
}

func (p *spooled) read(req *http.Request, dir string, limit int64, charge func(n int) error) error {
	r, free, coding, err := bodyReader(req, limit)
	if err != nil {
		return err
	}
	defer free()
	if r == nil {
		return nil
	}
	if cap(p.buf.b) < spoolFrom {
		p.buf.b = make([]byte, 0, spoolFrom)
	}
	if err := charge(cap(p.buf.b)); err != nil {
		return err
	}
	b, ended, err := fill(r, p.buf.b[:0], coding)
	if err != nil {
		return err
	}
	if p.b = b; ended {
		if int64(len(b)) > limit {
			return &http.MaxBytesError{Limit: limit}
		}
		return nil
	}
	if p.file, err = os.CreateTemp(dir, "body-*"); err != nil {
		return fmt.Errorf("a file for the body: %w", err)
	}
	if err := os.Remove(p.file.Name()); err != nil { // it lives as long as it is open, however this process ends
		return fmt.Errorf("a file for the body: %w", err)
	}
	return p.toFile(r, limit, coding, charge)
}

// fill reads spoolFrom bytes into b, which has room for them, or to the end.
func fill(r io.Reader, b []byte, coding string) (_ []byte, ended bool, err error) {
	for len(b) < spoolFrom {
		n, err := r.Read(b[len(b):spoolFrom])
		b = b[:len(b)+n]
		switch {
		case err == io.EOF:
			return b, true, nil
		case err != nil:
			return b, false, codingError(err, coding)
		}
	}
	return b, false, nil
}

// toFile moves what was read, and what r has behind it, to the file, and maps it.
func (p *spooled) toFile(r io.Reader, limit int64, coding string, charge func(n int) error) error {
	total, ended := int64(0), false
	chunk := p.b
	for {
		if total += int64(len(chunk)); total > limit {
			return &http.MaxBytesError{Limit: limit}
		}
		if _, err := p.file.Write(chunk); err != nil {
			return fmt.Errorf("the file of the body: %w", err)
		}
		if err := charge(len(chunk)); err != nil {
			return err
		}
		if ended {
			break
		}
		var err error
		if chunk, ended, err = fill(r, p.buf.b[:0], coding); err != nil {
			return err
		}
	}
	b, err := unix.Mmap(int(p.file.Fd()), 0, int(total), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the file of the body: %w", err)
	}
	p.b, p.maps = b, true
	return nil
}

// at reads the body after unmap too.
func (p *spooled) at() io.ReaderAt {
	if p.file != nil {
		return p.file
	}
	return bytes.NewReader(p.b)
}

// passed lets go of the pages before byte i.
func (p *spooled) passed(i int) {
	if !p.maps {
		return
	}
	if end := i &^ (os.Getpagesize() - 1); end > p.gone {
		_ = unix.Madvise(p.b[p.gone:end], unix.MADV_DONTNEED) // they are in the file
		p.gone = end
	}
}

// unmap gives up b where it is not memory.
func (p *spooled) unmap() {
	if p.maps {
		_ = unix.Munmap(p.b) // our own mapping
		p.b, p.maps = nil, false
	}
}

func (p *spooled) close() {
	p.unmap()
	if p.file != nil {
		p.file.Close()
	}
	p.buf.free()
}
