package main

import (
	"context"
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

// stopTimeout is how long the server may take to finish its requests.
const stopTimeout = 30 * time.Second

// server is the child process; its output goes to a log beside its data.
type server struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
	err    error // set before exited closes
}

// startServer starts the server in its own process group: an interrupt reaches
// only the demonstration, which then stops it in order.
func startServer(c config) (*server, error) {
	l, err := net.Listen("tcp", c.listen)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be used (%s); stop what listens there or choose another: make run LISTEN=127.0.0.1:8090", c.listen, reason(err))
	}
	l.Close()
	if err := os.MkdirAll(c.dataDir, 0o755); err != nil {
		return nil, err
	}
	s := &server{log: filepath.Join(c.dataDir, "serve.log"), exited: make(chan struct{})}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.Command(c.serve, "--listen", c.listen, "--data-dir", c.dataDir)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	step("starting %s on %s (log: %s)", c.serve, c.listen, s.log)
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w; run make build", err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.exited)
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

// untilReady waits until the server answers that it is ready.
func (s *server) untilReady(ctx context.Context, api *client) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		if api.do(ctx, http.MethodGet, "/v2/health/ready", "", nil, nil) == nil {
			return nil
		}
		select {
		case <-s.exited:
			return s.explain(errors.New("the server did not start"))
		case <-ctx.Done():
			return s.explain(fmt.Errorf("the server is not ready: %w", ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// explain adds the last line of the server's log to err.
func (s *server) explain(err error) error {
	b, readErr := os.ReadFile(s.log)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if readErr != nil || lines[len(lines)-1] == "" {
		return err
	}
	return fmt.Errorf("%w (%s ends: %s)", err, s.log, lines[len(lines)-1])
}

// stop ends the server in order, and by force when it takes too long.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
}
