package trace

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/fewbit/fewbit/internal/logs"
	"github.com/fewbit/fewbit/internal/telemetry"
)

// ExporterOptions configure NewExporter.
type ExporterOptions struct {
	// URL of the collector's OTLP over HTTP, for example http://127.0.0.1:4318.
	// Without a path it is /v1/traces. Headers, certificates and time-outs come
	// from OpenTelemetry's own variables, OTEL_EXPORTER_OTLP_HEADERS and so on.
	URL string
	// Ratio of the requests that bring no decision of their own, 0 to 1.
	Ratio float64
	// Version of this program.
	Version string
	// Log hears, now and then, of spans that could not be sent.
	Log *slog.Logger
}

// Exporter sends the spans of requests to an OpenTelemetry collector, in the
// background. What the collector does not take in time is dropped.
type Exporter struct {
	provider *sdk.TracerProvider
	tracer   oteltrace.Tracer
}

// Spans that cannot be sent make a line now and then.
const (
	complainBurst = 1
	complainEvery = time.Minute
)

// NewExporter returns an exporter to o.URL, which need not answer yet.
func NewExporter(ctx context.Context, o ExporterOptions) (*Exporter, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("OTLP address %.80q: expected http://HOST:PORT or https://HOST:PORT", o.URL)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	client, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()))
	if err != nil {
		return nil, fmt.Errorf("OTLP address %.80q: %w", o.URL, err)
	}
	if o.Log != nil {
		// The library has one place for errors in the background, its own log otherwise.
		limit := &logs.Limit{Burst: complainBurst, Every: complainEvery}
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
			if ok, more := limit.Allow(time.Now()); ok {
				o.Log.Warn("spans could not be sent", "error", err, "not_logged_before", more)
			}
		}))
	}
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "fewbit"), attribute.String("service.version", o.Version)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	return newExporter(sdk.WithBatcher(client), sdk.WithResource(about), sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(o.Ratio)))), nil
}

func newExporter(o ...sdk.TracerProviderOption) *Exporter {
	p := sdk.NewTracerProvider(o...)
	return &Exporter{p, p.Tracer("github.com/fewbit/fewbit")}
}

// Close sends what is left, until ctx ends.
func (e *Exporter) Close(ctx context.Context) error {
	if e == nil {
		return nil
	}
	return e.provider.Shutdown(ctx)
}

// carrier reads the W3C trace context of an HTTP header, whose keys are canonical,
// or of gRPC's metadata, whose keys are lower case.
type carrier map[string][]string

var _ propagation.TextMapCarrier = carrier{}

func (c carrier) Get(key string) string {
	for _, k := range [...]string{key, canonical[key]} {
		if v := c[k]; len(v) == 1 {
			return v[0]
		}
	}
	return ""
}

var canonical = map[string]string{"traceparent": "Traceparent", "tracestate": "Tracestate"}

// Set implements propagation.TextMapCarrier; nothing is asked to.
func (carrier) Set(string, string) {}

// Keys implements propagation.TextMapCarrier.
func (carrier) Keys() []string { return nil }

// parentOf is the caller's span, an invalid one when it names none.
func parentOf(header map[string][]string) oteltrace.SpanContext {
	ctx := propagation.TraceContext{}.Extract(context.Background(), carrier(header))
	return oteltrace.SpanContextFromContext(ctx)
}

// export makes the spans of an ended request: one for it and one for each phase,
// with the times that were taken.
func (e *Exporter) export(r *Request) {
	ctx := oteltrace.ContextWithRemoteSpanContext(context.Background(), parentOf(r.origin.Header))
	ctx, whole := e.tracer.Start(ctx, "infer "+r.model, oteltrace.WithTimestamp(r.origin.Arrival), oteltrace.WithSpanKind(oteltrace.SpanKindServer))
	defer whole.End(oteltrace.WithTimestamp(r.end))
	if !whole.IsRecording() {
		return
	}
	whole.SetAttributes(attribute.String("fewbit.model", r.model), attribute.String("fewbit.version", r.version), attribute.String("fewbit.request_id", r.origin.ID),
		attribute.Int64("fewbit.rows", r.outcome.Rows), attribute.Int64("fewbit.batch_rows", r.outcome.Batch))
	if r.outcome.Failure != "" {
		whole.SetStatus(codes.Error, r.outcome.Failure)
	}
	r.phases(func(p telemetry.Phase, from, to time.Time) {
		_, span := e.tracer.Start(ctx, p.String(), oteltrace.WithTimestamp(from))
		span.End(oteltrace.WithTimestamp(to))
	})
}
