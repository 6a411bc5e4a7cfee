package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"

	"turbotunnel/internal/ptproc"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// register makes the metrics of s. They hold counts only: no address, no
// session, and nothing that a client could choose.
func (s *service) register() *prometheus.Registry {
	r := prometheus.NewRegistry()
	gauge := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "turbotunnel", Name: name, Help: help}, value))
	}
	counter := func(name, help string, labels prometheus.Labels, value func() float64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "turbotunnel", Name: name, Help: help, ConstLabels: labels}, value))
	}
	stats := s.tunnel.Stats
	gauge("sessions", "Sessions now.", func() float64 { return float64(stats().Sessions) })
	gauge("streams", "Streams now.", func() float64 { return float64(stats().Streams) })
	gauge("streams_limit", "Streams that there may be, by the limit of open files.", func() float64 { return float64(stats().StreamLimit) })
	gauge("memory_bytes", "Bytes that are held for others: sessions with their engines and requests, connections, and what HTTP/2 holds.", func() float64 { return float64(s.held()) })
	counter("sessions_opened_total", "Sessions opened.", nil, func() float64 { return float64(stats().Opened) })
	counter("sessions_refused_total", "First messages refused for their engine or version.", nil, func() float64 { return float64(stats().Refused) })
	counter("sessions_expired_total", "Sessions whose client was not heard of any more.", nil, func() float64 { return float64(stats().Expired) })
	counter("sessions_crowded_total", "Sessions ended because they held too much memory.", nil, func() float64 { return float64(stats().Crowded) })
	counter("sessions_evicted_total", "Sessions that went for new ones because there were too many.", nil, func() float64 { return float64(stats().Evicted) })
	counter("sessions_untimely_total", "First messages that came at a wrong time, and were told the right one; or on a wrong day.", nil, func() float64 { return float64(stats().Untimely) })
	counter("first_messages_forgotten_total", "First messages that were forgotten before their time because more came than can be remembered: others of that time need a round trip more.", nil, func() float64 { return float64(stats().Forgotten) })
	counter("first_messages_refused_total", "First messages that were refused because more came than can be remembered.", nil, func() float64 { return float64(stats().Excess) })
	counter("streams_accepted_total", "Streams that clients have opened.", nil, func() float64 { return float64(stats().Accepted) })
	counter("streams_refused_total", "Streams whose destination could not be reached.", nil, func() float64 { return float64(s.streams.refused.Load()) })
	counter("streams_limited_total", "Streams for which there was no room, or that made room for others.", nil, func() float64 { return float64(stats().Limited) })
	decoy := s.decoy.Stats
	gauge("decoy_exchanges", "Exchanges with the site of -decoy URL now, of 64.", func() float64 { return float64(decoy().Exchanges) })
	gauge("decoy_bytes", "Bytes that are kept of strangers' requests and answers for -decoy URL, of 64 MB.", func() float64 { return float64(decoy().Kept) })
	counter("decoy_refused_total", "Requests of strangers for which all exchanges with the site of -decoy URL were in use for too long.", nil, func() float64 { return float64(decoy().Refused) })
	counter("decoy_crowded_total", "Strangers who were cut because they held most of what is kept for -decoy URL, or one of its long answers for the longest.", nil, func() float64 { return float64(decoy().Crowded) })
	const bodiesHelp = "Requests whose body did not come in time."
	counter("bodies_cut_total", bodiesHelp, prometheus.Labels{"of": "clients"}, func() float64 { return float64(stats().BodiesCut) })
	counter("bodies_cut_total", bodiesHelp, prometheus.Labels{"of": "strangers"}, func() float64 { return float64(decoy().BodiesCut) })
	const answersHelp = "Answers that were broken off because nothing of them was taken for too long."
	counter("answers_cut_total", answersHelp, prometheus.Labels{"of": "clients"}, func() float64 { return float64(stats().AnswersCut) })
	counter("answers_cut_total", answersHelp, prometheus.Labels{"of": "strangers"}, func() float64 { return float64(decoy().AnswersCut) })
	const bytesHelp = "Bytes of streams, towards the destination (up) and to clients (down)."
	counter("stream_bytes_total", bytesHelp, prometheus.Labels{"direction": "up"}, func() float64 { return float64(s.streams.up.Load()) })
	counter("stream_bytes_total", bytesHelp, prometheus.Labels{"direction": "down"}, func() float64 { return float64(s.streams.down.Load()) })
	gauge("connections", "Connections that were accepted and are open.", func() float64 { return float64(s.door.open()) })
	gauge("connections_limit", "Connections that there may be, by the limit of open files.", func() float64 { return float64(s.door.most) })
	gauge("http2_bytes", "Bytes that HTTP/2 holds for connections, and over HTTP/1 heads that are not whole.", func() float64 { return float64(s.door.held.Load()) })
	counter("connections_closed_total", "Connections that were closed to make room for others.", nil, func() float64 { return float64(s.door.closed.Load()) })
	counter("accept_errors_total", "Connections that could not be accepted.", nil, func() float64 { return float64(s.door.failed.Load()) })
	counter("http_requests_total", "HTTP requests, those of strangers included.", nil, func() float64 { return float64(s.requests.Load()) })
	build := prometheus.Labels{"version": ptproc.Version(), "goversion": runtime.Version()}
	r.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "turbotunnel", Name: "build_info", Help: "1, with the program's version.", ConstLabels: build,
		}, func() float64 { return 1 }),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
}

// A metricsServer shows metrics at /metrics, and at /healthz whether the server
// takes new streams, on a listener of its own, without TLS and to whoever can
// reach it.
type metricsServer struct {
	door *door
	web  *http.Server
}

// newMetricsServer takes the address by listen. stopping is done when the server
// takes no more streams.
func newMetricsServer(stopping context.Context, address string, listen func(string) (net.Listener, error), r *prometheus.Registry, log *slog.Logger) (*metricsServer, error) {
	ln, err := listen(address)
	if err != nil {
		return nil, fmt.Errorf("-metrics: %w", explainListen(address, err))
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if stopping.Err() != nil {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "serving\n")
	})
	return &metricsServer{newDoor(ln, fewConns, fewBytes, log), newWebServer(mux, nil, log)}, nil
}

// serve serves until close.
func (m *metricsServer) serve() error {
	if err := serveWeb(m.web, m.door); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("-metrics: %w", err)
	}
	return nil
}

func (m *metricsServer) close() {
	m.web.Close()
	m.door.Close() // where serve was not reached
}
