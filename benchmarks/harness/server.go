// Package harness is what the benchmarks written in Go share: a server in a
// process of its own, the machine's facts and noise, and results in the form
// that tools/benchtable reads.
package harness

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// startTimeout bounds how long a server, or a model in it, may take to be ready.
const startTimeout = time.Minute

// Server is bin/serve in a process of its own.
type Server struct {
	Base string // its URL
	PID  int
	cmd  *exec.Cmd
}

// Start starts the server program on a free loopback port, with more arguments
// if given, and waits until it is ready. Stop it.
func Start(program, data string, args ...string) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command(program, append([]string{"--listen", addr, "--grpc-listen", "", "--data-dir", data}, args...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w; run make build", err)
	}
	s := &Server{Base: "http://" + addr, PID: cmd.Process.Pid, cmd: cmd}
	if err := Wait(s.Base + "/v2/health/ready"); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// Stop ends the server and waits for it.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
}

// Wait returns when url answers 200.
func Wait(url string) error {
	for start := time.Now(); time.Since(start) < startTimeout; time.Sleep(20 * time.Millisecond) {
		if _, err := Call(http.DefaultClient, http.MethodGet, url, "", nil, nil); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s did not become ready in %v", url, startTimeout)
}

// StatusError is an answer other than 2xx.
type StatusError struct {
	Code int
	Text string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Code, http.StatusText(e.Code), e.Text)
}

// Refused reports whether err is the server's 503 or 429.
func Refused(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && (s.Code == http.StatusServiceUnavailable || s.Code == http.StatusTooManyRequests)
}

// Call sends one request and reads the answer; anything but 2xx is a
// *StatusError.
func Call(c *http.Client, method, url, contentType string, header map[string]string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = &StatusError{resp.StatusCode, strings.TrimSpace(string(b))}
	}
	return b, err
}
