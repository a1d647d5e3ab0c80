package drive

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// stopTimeout is how long the server may take to finish its requests.
	stopTimeout = 30 * time.Second
	// readyTimeout bounds the server's start; loading models takes seconds.
	readyTimeout = 2 * time.Minute
)

// Config says how a server is started.
type Config struct {
	Program string // bin/serve
	Listen  string // address; port 0 takes a free one
	DataDir string // made when it is not there; the log lies there too
	Args    []string
	// Another says how the user gives another address.
	Another string
}

// Server is the child process; its output goes to a log beside its data.
type Server struct {
	Addr   string        // where it listens
	Exited chan struct{} // closed when the process has ended
	cmd    *exec.Cmd
	log    string
}

// Start starts the server in its own process group: an interrupt reaches only
// the caller, which then stops it in order. The caller's thread must live as
// long as the server (runtime.LockOSThread): the kernel ends it with the thread.
func Start(c Config) (*Server, error) {
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be used (%s); stop what listens there or choose another: %s", c.Listen, reason(err), c.Another)
	}
	addr := l.Addr().String()
	l.Close()
	if err := os.MkdirAll(c.DataDir, 0o755); err != nil {
		return nil, err
	}
	s := &Server{Addr: addr, log: filepath.Join(c.DataDir, "serve.log"), Exited: make(chan struct{})}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.Command(c.Program, append([]string{"--listen", addr, "--data-dir", c.DataDir}, c.Args...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w; run make build", err)
	}
	go func() {
		_ = s.cmd.Wait() // how it ended is in its log
		close(s.Exited)
	}()
	return s, nil
}

// reason unwraps a network error to the words of the system.
func reason(err error) string {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err.Error()
	}
	return err.Error()
}

// UntilReady waits until the server answers that it is ready.
func (s *Server) UntilReady(ctx context.Context, api *Client) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		if api.Do(ctx, http.MethodGet, "/v2/health/ready", "", nil, nil) == nil {
			return nil
		}
		select {
		case <-s.Exited:
			return s.Explain(errors.New("the server did not start"))
		case <-ctx.Done():
			return s.Explain(fmt.Errorf("the server is not ready: %w", ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Explain adds the last line of the server's log to err.
func (s *Server) Explain(err error) error {
	b, readErr := os.ReadFile(s.log)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if readErr != nil || lines[len(lines)-1] == "" {
		return err
	}
	return fmt.Errorf("%w (%s ends: %s)", err, s.log, lines[len(lines)-1])
}

// Stop ends the server in order, and by force when it takes too long.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.Exited:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.Exited
	}
}

// CaptureKey returns the file in dir with the key that a server encrypts captured
// inputs under, and makes it the first time.
func CaptureKey(dir string) (string, error) {
	path := filepath.Join(dir, "capture.key")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails (crypto/rand)
	tmp := path + ".part"
	if err := os.WriteFile(tmp, []byte(base64.StdEncoding.EncodeToString(key[:])+"\n"), 0o600); err != nil {
		return "", err
	}
	return path, os.Rename(tmp, path)
}
