package grpc

import (
	"context"

	"github.com/fewbit/fewbit/internal/grpc/pb"
	fhttp "github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/logs"
)

// TraceSetting returns the trace settings, after those of the request, which need
// the admin's key.
func (s *Server) TraceSetting(ctx context.Context, r *pb.TraceSettingRequest) (*pb.TraceSettingResponse, error) {
	model := r.GetModelName()
	if len(r.GetSettings()) > 0 {
		change := map[string][]string{}
		for name, v := range r.GetSettings() {
			change[name] = v.GetValue() // nil without one
		}
		err := s.administer(ctx, pb.GRPCInferenceService_TraceSetting_FullMethodName, func() error { return s.b.SetTracing(model, change) })
		if err != nil {
			return nil, err
		}
	}
	set, err := s.b.Tracing(model)
	if err != nil {
		return nil, err
	}
	ans := &pb.TraceSettingResponse{Settings: map[string]*pb.TraceSettingResponse_SettingValue{}}
	for name, values := range set.Values() {
		ans.Settings[name] = &pb.TraceSettingResponse_SettingValue{Value: values}
	}
	return ans, nil
}

// LogSettings returns the log's settings, after those of the request, which need
// the admin's key. A setting without a value stays as it is.
func (s *Server) LogSettings(ctx context.Context, r *pb.LogSettingsRequest) (*pb.LogSettingsResponse, error) {
	if len(r.GetSettings()) > 0 {
		err := s.administer(ctx, pb.GRPCInferenceService_LogSettings_FullMethodName, func() error {
			var bad error
			err := s.b.SetLogging(func(set *logs.Settings) {
				before := *set
				for name, v := range r.GetSettings() {
					if bad = setLog(set, name, v); bad != nil {
						*set = before
						return
					}
				}
			})
			if bad != nil {
				return bad
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	set, err := s.b.Logging()
	if err != nil {
		return nil, err
	}
	flag := func(v bool) *pb.LogSettingsResponse_SettingValue {
		return &pb.LogSettingsResponse_SettingValue{ParameterChoice: &pb.LogSettingsResponse_SettingValue_BoolParam{BoolParam: v}}
	}
	text := func(v string) *pb.LogSettingsResponse_SettingValue {
		return &pb.LogSettingsResponse_SettingValue{ParameterChoice: &pb.LogSettingsResponse_SettingValue_StringParam{StringParam: v}}
	}
	return &pb.LogSettingsResponse{Settings: map[string]*pb.LogSettingsResponse_SettingValue{
		"log_file": text(""), "log_format": text(set.Format), "log_info": flag(set.Info), "log_warning": flag(set.Warning), "log_error": flag(set.Error),
		"log_verbose_level": {ParameterChoice: &pb.LogSettingsResponse_SettingValue_Uint32Param{Uint32Param: uint32(set.Verbose)}},
	}}, nil
}

// administer does what only an administrator may, of a call that others may make
// too, and writes it down.
func (s *Server) administer(ctx context.Context, method string, f func() error) error {
	c := callIn(ctx) // the interceptor has refused calls without
	err := errElsewhere
	if !s.o.NoAdmin {
		err = s.b.Enter(fhttp.NeedAdmin, &c.caller)
	}
	if err == nil {
		err = f()
	}
	code, err := s.word(ctx, method, err)
	s.record(c, method, code, err)
	return err
}

// setLog sets one setting.
func setLog(set *logs.Settings, name string, v *pb.LogSettingsRequest_SettingValue) error {
	if v.GetParameterChoice() == nil {
		return nil
	}
	want := "true or false"
	switch x := v.GetParameterChoice().(type) {
	case *pb.LogSettingsRequest_SettingValue_BoolParam:
		to := map[string]*bool{"log_info": &set.Info, "log_warning": &set.Warning, "log_error": &set.Error}[name]
		if to != nil {
			*to = x.BoolParam
			return nil
		}
	case *pb.LogSettingsRequest_SettingValue_Uint32Param:
		if name == "log_verbose_level" {
			set.Verbose = int(min(x.Uint32Param, logs.MaxVerbose+1)) // too much is refused by name
			return nil
		}
	case *pb.LogSettingsRequest_SettingValue_StringParam:
		switch name {
		case "log_file":
			return fhttp.CheckLogFile(x.StringParam)
		case "log_format":
			set.Format = x.StringParam
			return nil
		}
	}
	switch name {
	case "log_info", "log_warning", "log_error":
	case "log_verbose_level":
		want = "a number"
	case "log_file", "log_format":
		want = "text"
	default:
		return fhttp.BadRequest("log setting %.40q is not known", name)
	}
	return fhttp.BadRequest("log setting %s: expected %s", name, want)
}
