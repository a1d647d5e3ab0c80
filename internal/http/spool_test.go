package http

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/klauspost/compress/gzip"

	"github.com/fewbit/fewbit/internal/engine"
)

// spoolOf reads body with that limit; charged is what was asked for.
func (f *fixture) spoolOf(body io.Reader, length, limit int64, coding string) (p *spooled, charged int, err error) {
	c, _ := gin.CreateTestContext(httptest.NewRecorder())
	c.Request = httptest.NewRequest("POST", "/", body)
	c.Request.ContentLength = length
	if coding != "" {
		c.Request.Header.Set("Content-Encoding", coding)
	}
	p, err = f.spool(c, limit, func(n int) error {
		charged += n
		return nil
	})
	return p, charged, err
}

func TestSpool(t *testing.T) {
	dir := t.TempDir()
	f := newFixture(t, nil, func(c *Config) { c.SpoolDir = dir })
	r := rand.New(rand.NewPCG(1, 0))
	random := make([]byte, 3*spoolFrom+5)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	for _, n := range []int{0, 1, spoolFrom - 1, spoolFrom, spoolFrom + 1, 2 * spoolFrom, len(random)} {
		for _, coding := range []string{"", codingGzip} {
			sent := bytes.NewBuffer(random[:n:n])
			if coding != "" {
				if n == 0 {
					continue
				}
				sent = &bytes.Buffer{}
				z := gzip.NewWriter(sent)
				_, _ = z.Write(random[:n])
				_ = z.Close()
			}
			p, charged, err := f.spoolOf(sent, int64(sent.Len()), int64(len(random))+1000, coding)
			if err != nil {
				t.Fatalf("%d bytes %s: %v", n, coding, err)
			}
			if !bytes.Equal(p.b, random[:n]) || charged < n || (p.file != nil) != (n >= spoolFrom) {
				t.Errorf("%d bytes %s: read %d, charged %d, in a file %v", n, coding, len(p.b), charged, p.file != nil)
			}
			p.passed(len(p.b))
			if !bytes.Equal(p.b, random[:n]) {
				t.Errorf("%d bytes %s: gone", n, coding)
			}
			p.unmap()
			if got, err := io.ReadAll(io.NewSectionReader(p.at(), 0, int64(n))); !bytes.Equal(got, random[:n]) || err != nil {
				t.Errorf("%d bytes %s: afterwards %d, %v", n, coding, len(got), err)
			}
			p.close()
		}
	}
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		body   io.Reader
		length int64
		want   error
	}{
		"longer than allowed":    {bytes.NewReader(random), -1, &http.MaxBytesError{}},
		"a header that says so":  {bytes.NewReader(random), int64(len(random)), &http.MaxBytesError{}},
		"cut off in the file":    {io.MultiReader(bytes.NewReader(random[:spoolFrom+9]), failing{io.ErrUnexpectedEOF}), -1, io.ErrUnexpectedEOF},
		"cut off in memory":      {io.MultiReader(bytes.NewReader(random[:9]), failing{io.ErrUnexpectedEOF}), -1, io.ErrUnexpectedEOF},
		"slow":                   {io.MultiReader(bytes.NewReader(random[:spoolFrom+9]), failing{os.ErrDeadlineExceeded}), -1, os.ErrDeadlineExceeded},
		"a connection that ends": {io.MultiReader(bytes.NewReader(random[:spoolFrom+9]), failing{broken}), -1, badf("")},
	} {
		_, _, err := f.spoolOf(c.body, c.length, 2*spoolFrom+100, "")
		if tooLarge := new(http.MaxBytesError); errors.As(c.want, &tooLarge) && errors.As(err, &tooLarge) {
			continue
		}
		if worded := new(httpError); errors.As(c.want, &worded) && errors.As(err, &worded) {
			continue
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%d files are left", len(left))
	}
	f.cfg.SpoolDir = filepath.Join(dir, "none")
	if _, _, err := f.spoolOf(bytes.NewReader(random), -1, MaxLoadBody, ""); !errors.Is(err, os.ErrNotExist) || strings.Contains(explain(err).msg, dir) {
		t.Errorf("no folder: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// loading is models that read what a load request brings.
type loading struct {
	*testModels
	sum string
}

func (l *loading) LoadFiles(_ context.Context, _ string, versions []InlineVersion) (string, error) {
	l.sum = ""
	for _, v := range versions {
		h := sha256.New()
		n, err := io.Copy(h, v.Files["model.onnx"])
		if err != nil {
			return "", err
		}
		l.sum += fmt.Sprintf("%d: %d %x\n", v.Number, n, h.Sum(nil))
	}
	return "1", nil
}

func (l *loading) LoadVersion(context.Context, string, string) error { return nil }

// TestLoadIsNotHeld: a load request of many times that size takes little memory, be its
// base64 written with escapes or not, and what is no file is bounded.
func TestLoadIsNotHeld(t *testing.T) {
	const size, most = 96 << 20, 40 << 20
	l := &loading{}
	f := newFixture(t, nil, func(c *Config) {
		c.SpoolDir = t.TempDir()
		l.testModels = c.Models.(*testModels)
		c.Models = l
	})
	if _, err := engine.ReadMemory(); err != nil {
		t.Skip(err)
	}
	block := make([]byte, 3<<10)
	r := rand.New(rand.NewPCG(2, 0))
	for i := range block {
		block[i] = byte(r.Uint32())
	}
	plain := base64.StdEncoding.EncodeToString(block)
	var escaped strings.Builder
	for _, c := range plain { // as PHP and .NET do
		switch c {
		case '/':
			escaped.WriteString(`\/`)
		case '+':
			escaped.WriteString("\\u002B")
		default:
			escaped.WriteRune(c)
		}
	}
	junk := strings.Repeat(`\u00e9`, 512)
	for name, c := range map[string]struct {
		key, text string
		status    int
	}{
		"plain": {"file:1/model.onnx", plain, 200}, "escaped": {"file:1/model.onnx", escaped.String(), 200},
		"an other key": {"x", junk, 400}, "a long configuration": {"config", junk, 400}, "a long key": {"", junk, 400},
	} {
		blocks := size / len(c.text)
		head, tail := `{"parameters":{"`+c.key+`":"`, `"}}`
		if c.key == "" {
			head, tail = `{"parameters":{"`, `":""}}`
		}
		body := []io.Reader{strings.NewReader(head)}
		for range blocks {
			body = append(body, strings.NewReader(c.text))
		}
		body = append(body, strings.NewReader(tail))
		before, _ := engine.ReadMemory()
		stop, peak := make(chan struct{}), make(chan int64)
		go func() {
			most := int64(0)
			for {
				m, _ := engine.ReadMemory()
				most = max(most, m.RSS)
				select {
				case <-stop:
					peak <- most
					return
				case <-time.After(time.Millisecond):
				}
			}
		}()
		a := f.call(t, "POST", "/v2/repository/models/echo/load", io.MultiReader(body...))
		close(stop)
		if grown := <-peak - before.RSS; grown > most {
			t.Errorf("%s: a request of %d MiB took %d MiB", name, size>>20, grown>>20)
		}
		if a.status != c.status {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		if c.status != 200 {
			continue
		}
		h := sha256.New()
		for range blocks {
			_, _ = h.Write(block)
		}
		if want := fmt.Sprintf("1: %d %x\n", blocks*len(block), h.Sum(nil)); l.sum != want {
			t.Errorf("%s: loaded %swant %s", name, l.sum, want)
		}
	}
	f.bodiesReturned(t)
}
