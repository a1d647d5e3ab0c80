package http

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
)

// Content codings (RFC 9110, 8.4.1): deflate is the zlib format.
const (
	codingGzip    = "gzip"
	codingDeflate = "deflate"
)

var (
	gzipReaders sync.Pool // *gzip.Reader
	zlibReaders sync.Pool // io.ReadCloser that is a zlib.Resetter
	gzipWriters = sync.Pool{New: func() any { w, _ := gzip.NewWriterLevel(io.Discard, flate.BestSpeed); return w }}
	zlibWriters = sync.Pool{New: func() any { w, _ := zlib.NewWriterLevel(io.Discard, flate.BestSpeed); return w }}
)

// requestCoding returns the request's one content coding, "" for none.
func requestCoding(r *http.Request) (string, error) {
	values := r.Header["Content-Encoding"]
	if len(values) == 0 {
		return "", nil
	}
	coding := strings.ToLower(strings.TrimSpace(strings.Join(values, ",")))
	switch coding {
	case "", "identity":
		return "", nil
	case codingGzip, "x-gzip":
		return codingGzip, nil
	case codingDeflate:
		return codingDeflate, nil
	}
	return "", failf(http.StatusUnsupportedMediaType, "Content-Encoding %s is not supported: send one of gzip, deflate or identity, once", clip([]byte(coding)))
}

// decoder reads a body through its content coding. free returns what is pooled.
func decoder(body io.Reader, coding string) (r io.Reader, free func(), err error) {
	switch coding {
	case codingGzip:
		z, _ := gzipReaders.Get().(*gzip.Reader)
		if z == nil {
			z = new(gzip.Reader)
		}
		if err := z.Reset(body); err != nil {
			gzipReaders.Put(z)
			return nil, nil, err
		}
		return z, func() { gzipReaders.Put(z) }, nil
	case codingDeflate:
		if z, ok := zlibReaders.Get().(io.ReadCloser); ok {
			if err := z.(zlib.Resetter).Reset(body, nil); err != nil {
				zlibReaders.Put(z)
				return nil, nil, err
			}
			return z, func() { zlibReaders.Put(z) }, nil
		}
		z, err := zlib.NewReader(body)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { zlibReaders.Put(z) }, nil
	}
	return body, func() {}, nil
}

// codingError words an error of reading a body: the server's limits stay as they
// are, anything else is the client's or its content coding's.
func codingError(err error, coding string) error {
	var tooLarge *http.MaxBytesError
	var worded *httpError
	switch {
	case errors.As(err, &tooLarge), errors.As(err, &worded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.Canceled):
		return err
	case coding == "" && errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case coding == "": // net/http has no error of its own for malformed chunks
		return badf("the body could not be read: its chunks are malformed, or the connection broke")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return badf("the %s body ends early", coding)
	}
	return badf("the body is not valid %s", coding)
}

// readBody reads a request's whole body, decoded, into buf.b[pad:]. It never
// holds more than limit bytes, and never allocates much on the word of
// Content-Length. charge, when set, is asked for every byte of the buffer.
func (s *Server) readBody(c *gin.Context, buf *buffer, pad int, limit int64, charge func(n int) error) error {
	req := c.Request
	r, free, coding, err := bodyReader(req, limit)
	if err != nil {
		return err
	}
	defer free()
	if r == nil {
		buf.b = buf.b[:pad]
		return nil
	}
	if charge != nil { // a buffer that was used before is memory as well
		if err := charge(cap(buf.b)); err != nil {
			return err
		}
	}
	b := buf.b[:pad]
	want := pad + 512
	if coding == "" && req.ContentLength > 0 {
		want = pad + int(min(req.ContentLength, firstRead)) + 1 // one more byte lets the end show without growing
	}
	for {
		if len(b) == cap(b) || cap(b) < want {
			size := max(min(2*cap(b), pad+int(limit)+1), want, 4096)
			if charge != nil {
				if err := charge(size - cap(b)); err != nil {
					buf.b = b
					return err
				}
			}
			b = append(make([]byte, 0, size), b...)
			want = 0
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if int64(len(b)-pad) > limit {
			buf.b = b
			return &http.MaxBytesError{Limit: limit}
		}
		if err == io.EOF {
			buf.b = b
			arrived(c)
			return nil
		}
		if err != nil {
			buf.b = b
			return codingError(err, coding)
		}
	}
}

// bodyReader returns what reads a request's body, decoded, nil when there is none.
func bodyReader(req *http.Request, limit int64) (r io.Reader, free func(), coding string, err error) {
	free = func() {}
	if req.ContentLength > limit {
		return nil, free, "", &http.MaxBytesError{Limit: limit}
	}
	if coding, err = requestCoding(req); err != nil {
		return nil, free, "", err
	}
	switch {
	case req.Body == nil || req.ContentLength == 0:
		if coding != "" {
			err = badf("the %s body is empty", coding)
		}
		return nil, free, coding, err
	case coding == "":
		return req.Body, free, coding, nil
	}
	z, done, err := decoder(http.MaxBytesReader(nil, req.Body, limit), coding)
	if err != nil {
		return nil, free, coding, codingError(err, coding)
	}
	return z, done, coding, nil
}

// arrived lifts the deadline of a body that was read to its end: it would end the
// handler's context.
func arrived(c *gin.Context) {
	_ = http.NewResponseController(c.Writer).SetReadDeadline(time.Time{})
}

// acceptCoding picks the answer's content coding from Accept-Encoding, in the
// server's order of preference; a quality of 0 refuses.
func acceptCoding(values []string) string {
	if len(values) == 0 {
		return ""
	}
	gzipOK, deflateOK := false, false
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			name, params, _ := strings.Cut(part, ";")
			ok := true
			if q, found := strings.CutPrefix(strings.ToLower(strings.TrimSpace(params)), "q="); found {
				quality, err := strconv.ParseFloat(q, 64)
				ok = err == nil && quality > 0
			}
			switch strings.ToLower(strings.TrimSpace(name)) {
			case codingGzip, "x-gzip":
				gzipOK = ok
			case codingDeflate:
				deflateOK = ok
			}
		}
	}
	switch {
	case gzipOK:
		return codingGzip
	case deflateOK:
		return codingDeflate
	}
	return ""
}

// write answers with the parts, one after the other, compressed when the
// client accepts that and it is worth it.
func (s *Server) write(c *gin.Context, status int, contentType []string, parts ...[]byte) {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	h := c.Writer.Header()
	h["Content-Type"] = contentType
	// Slow readers get at least one MB/s beyond the body timeout.
	deadline := time.Now().Add(s.cfg.BodyTimeout + time.Duration(size)*time.Microsecond)
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(deadline)
	if size >= compressFrom && c.Request.Header["Accept-Encoding"] != nil {
		h.Add("Vary", "Accept-Encoding") // beside what the route's own answer depends on
		if coding := acceptCoding(c.Request.Header["Accept-Encoding"]); coding != "" {
			parts, size = compress(coding, parts)
			h["Content-Encoding"] = []string{coding}
		}
	}
	h["Content-Length"] = []string{strconv.Itoa(size)}
	progressOf(c).answering = true
	s.answered.Add(1)
	c.Writer.WriteHeader(status)
	for _, p := range parts {
		if _, err := c.Writer.Write(p); err != nil {
			return // the client is gone: nobody is left to tell
		}
	}
	c.Writer.Flush()
}

// resetter is a compressor that can be used again.
type resetter interface {
	io.WriteCloser
	Reset(io.Writer)
}

func compress(coding string, parts [][]byte) ([][]byte, int) {
	pool := &gzipWriters
	if coding == codingDeflate {
		pool = &zlibWriters
	}
	w := pool.Get().(resetter)
	defer pool.Put(w)
	var out byteSink
	w.Reset(&out)
	for _, p := range parts {
		_, _ = w.Write(p) // a byteSink takes everything
	}
	_ = w.Close()
	return [][]byte{out}, len(out)
}

type byteSink []byte

func (b *byteSink) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// reply answers with v as JSON.
func (s *Server) reply(c *gin.Context, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.write(c, status, typeJSON, append(b, '\n'))
	return nil
}

// noContent answers 204.
func (s *Server) noContent(c *gin.Context) error {
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(s.cfg.BodyTimeout))
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
	return nil
}
