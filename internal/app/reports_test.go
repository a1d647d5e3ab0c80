package app

import (
	"context"
	"os"
	"testing"
	"time"
)

// TestReportsOfForgottenJobs: a server that runs for long removes them too, but not
// the report that a job is about to have.
func TestReportsOfForgottenJobs(t *testing.T) {
	s := start(t, "", nil)
	old := time.Now().Add(-2 * collectEvery)
	for _, id := range []string{"forgotten", "young"} {
		if err := s.keepReport(id, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(s.reportPath("forgotten"), old, old); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() { s.collect(ctx); close(done) }()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(s.reportPath("forgotten")); os.IsNotExist(err) {
			break
		} else if time.Now().After(end) {
			t.Error("the report of a forgotten job stays")
			break
		}
	}
	cancel()
	<-done
	if _, err := os.Stat(s.reportPath("young")); err != nil {
		t.Error(err)
	}
}
