package app

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/report"
)

// flag finds a flag of the command line, which means nothing to a client.
var flag = regexp.MustCompile(`(^|[\s("])--[a-z]`)

// TestReportsSpeakToClients: what a job's report advises is worded for the
// request that it answers.
func TestReportsSpeakToClients(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	const evaluation = `"evaluation": {"dataset": NAME}`
	for name, c := range map[string]struct {
		spec jobs.Spec
		want string
	}{
		"judged on what calibrated": {jobs.Spec{Model: "m", Scheme: "int8", Force: true, Calibration: &jobs.Calibration{Dataset: "calib"}}, evaluation},
		"not judged":                {jobs.Spec{Model: "m", Scheme: "fp16", Force: true}, evaluation},
	} {
		id := s.submit(c.spec)
		st := s.finished(id)
		var res result
		if st.Status != jobs.Succeeded || json.Unmarshal(st.Result, &res) != nil {
			t.Fatalf("%s: %+v", name, st)
		}
		if !slices.ContainsFunc(res.Report.Warnings, func(w string) bool { return strings.Contains(w, c.want) }) {
			t.Errorf("%s: no warning says %s: %q", name, c.want, res.Report.Warnings)
		}
		rep, err := report.ReadJSON(bytes.NewReader(s.do("GET", "/quantize/"+id+"/report", nil).into(t, 200, nil).body))
		if err != nil {
			t.Fatal(err)
		}
		texts := append(slices.Clone(rep.Warnings), rep.Verdict.Reasons...)
		for _, op := range rep.Operators {
			texts = append(texts, op.Rule)
		}
		for _, text := range texts {
			if flag.MatchString(text) {
				t.Errorf("%s: the report speaks of the command line: %q", name, text)
			}
		}
	}
	s.refused(t, s.do("POST", "/quantize", jobs.Spec{Model: "m", Scheme: "mixed", Calibration: &jobs.Calibration{Dataset: "calib"}}), 400, "scheme mixed", "say which")
	if a := s.do("POST", "/quantize", jobs.Spec{Model: "m", Scheme: "mixed", Calibration: &jobs.Calibration{Dataset: "calib"}}); flag.Match(a.body) {
		t.Errorf("%v", a)
	}
}
