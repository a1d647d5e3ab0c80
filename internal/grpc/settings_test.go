package grpc

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/fewbit/fewbit/internal/access"
	"github.com/fewbit/fewbit/internal/grpc/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

func TestTraceSetting(t *testing.T) {
	c, _ := start(t, echoes(tensor.Float32), nil)
	set := func(model string, pairs ...string) (*pb.TraceSettingResponse, error) {
		r := &pb.TraceSettingRequest{ModelName: model, Settings: map[string]*pb.TraceSettingRequest_SettingValue{}}
		for i := 0; i < len(pairs); i += 2 {
			v := &pb.TraceSettingRequest_SettingValue{}
			if pairs[i+1] != "" {
				v.Value = []string{pairs[i+1]}
			}
			r.Settings[pairs[i]] = v
		}
		return c.TraceSetting(t.Context(), r)
	}
	ans, err := set("")
	if err != nil || fmt.Sprint(ans.Settings["trace_level"].GetValue(), ans.Settings["trace_rate"].GetValue()) != "[OFF] [1000]" {
		t.Fatalf("%v, %v", ans, err)
	}
	if ans, err = set("m", "trace_level", "TIMESTAMPS", "trace_rate", "5"); err != nil || fmt.Sprint(ans.Settings["trace_level"].GetValue(), ans.Settings["trace_rate"].GetValue()) != "[TIMESTAMPS] [5]" {
		t.Errorf("after setting: %v, %v", ans, err)
	}
	if ans, err = set("m", "trace_rate", ""); err != nil || ans.Settings["trace_rate"].GetValue()[0] != "1000" {
		t.Errorf("after clearing: %v, %v", ans, err)
	}
	for _, bad := range [][]string{{"", "trace_level", "TENSORS"}, {"", "x", "1"}, {"m", "trace_file", "../x"}} {
		if _, err := set(bad[0], bad[1:]...); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if _, err := set("none"); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown model: %v", err)
	}
}

func TestLogSettings(t *testing.T) {
	c, _ := start(t, echoes(tensor.Float32), nil)
	type value = pb.LogSettingsRequest_SettingValue
	flag := func(v bool) *value {
		return &value{ParameterChoice: &pb.LogSettingsRequest_SettingValue_BoolParam{BoolParam: v}}
	}
	number := func(v uint32) *value {
		return &value{ParameterChoice: &pb.LogSettingsRequest_SettingValue_Uint32Param{Uint32Param: v}}
	}
	text := func(v string) *value {
		return &value{ParameterChoice: &pb.LogSettingsRequest_SettingValue_StringParam{StringParam: v}}
	}
	set := func(s map[string]*value) (*pb.LogSettingsResponse, error) {
		return c.LogSettings(t.Context(), &pb.LogSettingsRequest{Settings: s})
	}
	ans, err := set(map[string]*value{"log_info": flag(false), "log_verbose_level": number(1), "log_format": text("json"), "log_error": {}, "log_file": text("")})
	if err != nil || ans.Settings["log_info"].GetBoolParam() || !ans.Settings["log_error"].GetBoolParam() || ans.Settings["log_verbose_level"].GetUint32Param() != 1 || ans.Settings["log_format"].GetStringParam() != "json" {
		t.Fatalf("%v, %v", ans, err)
	}
	for name, v := range map[string]*value{"log_info": number(1), "log_verbose_level": number(4_000_000_000), "log_format": text("x"), "log_file": text("/tmp/x"), "nonsense": flag(true), "log_error": text("")} {
		if _, err := set(map[string]*value{name: v}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if ans, err := set(nil); err != nil || ans.Settings["log_verbose_level"].GetUint32Param() != 1 {
		t.Errorf("refused settings changed something: %v, %v", ans, err)
	}
}

// TestSettingsNeedKey: reading is free, changing is the admin's; a call's id comes
// back in its header.
func TestSettingsNeedKey(t *testing.T) {
	keys, err := access.Parse(fmt.Appendf(nil, "ops admin sha256:%x\n", sha256.Sum256([]byte("0123456789abcdef"))))
	if err != nil {
		t.Fatal(err)
	}
	c, _ := start(t, echoes(tensor.Float32), access.Static(keys))
	var header metadata.MD
	ctx := metadata.AppendToOutgoingContext(t.Context(), idHeader, "mine")
	if _, err := c.TraceSetting(ctx, &pb.TraceSettingRequest{}, grpc.Header(&header)); err != nil || fmt.Sprint(header.Get(idHeader)) != "[mine]" {
		t.Errorf("%v, header %v", err, header)
	}
	if _, err := c.LogSettings(ctx, &pb.LogSettingsRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := c.TraceSetting(ctx, &pb.TraceSettingRequest{Settings: map[string]*pb.TraceSettingRequest_SettingValue{"trace_rate": {Value: []string{"1"}}}}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a key: %v", err)
	}
	if _, err := c.LogSettings(ctx, &pb.LogSettingsRequest{Settings: map[string]*pb.LogSettingsRequest_SettingValue{"log_info": {}}}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a key: %v", err)
	}
}
