package drive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/report"
)

// Main runs an example until it ends or is interrupted, and exits with its status.
func Main(run func(context.Context) error) {
	// The server asks the kernel to be told when the thread that started it
	// ends, so that thread must live as long as the program.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		if ctx.Err() != nil {
			fmt.Fprintln(os.Stderr, "\nstopped; what is done is kept, the same command goes on")
			os.Exit(130)
		}
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// StartCapturing starts the server with its data below dir and a key for captures,
// and waits until it is ready.
func StartCapturing(ctx context.Context, out io.Writer, program, dir string) (*Server, *Client, error) {
	key, err := CaptureKey(dir)
	if err != nil {
		return nil, nil, err
	}
	data := filepath.Join(dir, "server")
	fmt.Fprintf(out, "==> starting %s (log: %s)\n", program, filepath.Join(data, "serve.log"))
	srv, err := Start(Config{Program: program, Listen: "127.0.0.1:0", DataDir: data, Args: []string{"--grpc-listen", "", "--capture-key", key}})
	if err != nil {
		return nil, nil, err
	}
	api := NewClient("http://" + srv.Addr)
	if err := srv.UntilReady(ctx, api); err != nil {
		srv.Stop()
		return nil, nil, err
	}
	return srv, api, nil
}

// jobTimeout bounds a quantization job.
const jobTimeout = 30 * time.Minute

// Job is what a quantization made.
type Job struct {
	Version string        `json:"version"`
	Seconds float64       `json:"seconds"`
	Report  report.Report `json:"report"`
}

// Quantize submits a job and follows it, in two steps. The id is kept first: a run
// that is interrupted meanwhile finds the same job, which goes on when the server is
// back. remember makes what is kept of the job; its Report lacks the tables of
// tensors and operators, which are long, and full is whole.
func Quantize[T any](ctx context.Context, s *Steps, api *Client, title string, spec jobs.Spec, remember func(j Job, full *report.Report) T) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	var none T
	id, err := Do(s, "submit", title, func() (string, error) { return api.Submit(ctx, spec) })
	if err != nil {
		return none, err
	}
	return Do(s, "job", "job "+id, func() (T, error) {
		p, start := NewProgress(s.out), time.Now()
		st, err := api.Follow(ctx, id, p.Show)
		p.Done()
		if err != nil {
			return none, err
		}
		if st.Status != jobs.Succeeded {
			return none, errors.Join(fmt.Errorf("job %s %s: %s", id, st.Status, st.Error), s.Forget("submit"))
		}
		var result struct {
			Version string `json:"version"`
		}
		if err := json.Unmarshal(st.Result, &result); err != nil {
			return none, fmt.Errorf("job %s: its result is not what was expected: %w", id, err)
		}
		full, err := api.Report(ctx, st)
		if err != nil {
			return none, err
		}
		j := Job{Version: result.Version, Seconds: time.Since(start).Seconds(), Report: *full}
		j.Report.Tensors, j.Report.Operators = nil, nil
		return remember(j, full), nil
	})
}
