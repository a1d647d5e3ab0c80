package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
)

// conns are kept-alive connections for requests whose bytes are ready: on a
// machine that server and client share, what the client computes is taken from
// the server.
type conns struct {
	addr string
	mu   sync.Mutex
	idle []*conn
}

type conn struct {
	net.Conn
	r *bufio.Reader
}

// answerTimeout bounds how long an answer may take.
const answerTimeout = time.Minute

// do sends raw, a whole HTTP/1.1 request, and reads the answer; anything but 2xx
// is a *harness.StatusError.
func (p *conns) do(raw []byte) error {
	c, err := p.get()
	if err != nil {
		return err
	}
	code, text, err := c.roundTrip(raw)
	if err != nil {
		c.Close()
		return err
	}
	p.mu.Lock()
	p.idle = append(p.idle, c)
	p.mu.Unlock()
	if code/100 != 2 {
		return &harness.StatusError{Code: code, Text: text}
	}
	return nil
}

func (p *conns) get() (*conn, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReaderSize(c, 16<<10)}, nil
}

var errAnswer = errors.New("not an answer of this server")

// roundTrip returns the status and, of errors, the body.
func (c *conn) roundTrip(raw []byte) (code int, text string, err error) {
	if err := c.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return 0, "", err
	}
	if _, err := c.Write(raw); err != nil {
		return 0, "", err
	}
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return 0, "", err
	}
	if len(line) < 12 {
		return 0, "", errAnswer
	}
	if code, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, "", errAnswer
	}
	length := -1
	for {
		if line, err = c.r.ReadSlice('\n'); err != nil {
			return 0, "", err
		}
		if len(line) <= 2 {
			break
		}
		const name = "Content-Length: "
		if len(line) > len(name) && string(line[:len(name)]) == name {
			if length, err = strconv.Atoi(textproto.TrimString(string(line[len(name):]))); err != nil {
				return 0, "", errAnswer
			}
		}
	}
	if length < 0 {
		return 0, "", errAnswer
	}
	if code/100 == 2 {
		_, err = c.r.Discard(length)
		return code, "", err
	}
	b, err := io.ReadAll(io.LimitReader(c.r, int64(length)))
	return code, string(b), err
}

// rawRequest is the bytes of a request.
func rawRequest(method, host, path string, header map[string]string, body []byte) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, host)
	for k, v := range header {
		fmt.Fprintf(&b, "%s: %s\r\n", k, v)
	}
	if len(body) > 0 {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	return append([]byte(b.String()+"\r\n"), body...)
}
