package service

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"time"

	"github.com/caarlos0/env/v11"

	"shop.example/platform/flightrecorder"
)

// ProfileConfig says what else is recorded about a process. The tags are those of github.com/caarlos0/env.
type ProfileConfig struct {
	// MutexFraction records one in that many events of mutex contention, BlockRate one blocking event per that many
	// nanoseconds spent blocked; 0 records none. They are the arguments of runtime.SetMutexProfileFraction and
	// SetBlockProfileRate.
	MutexFraction  int `env:"PPROF_MUTEX_FRACTION"`
	BlockRate      int `env:"PPROF_BLOCK_RATE"`
	FlightRecorder flightrecorder.Config
}

// StartProfiles reads a ProfileConfig from the environment and records accordingly, for the whole process, until stop is
// called.
func StartProfiles(log *slog.Logger) (stop func(), err error) {
	cfg, err := env.ParseAs[ProfileConfig]()
	if err != nil {
		return nil, err
	}
	runtime.SetMutexProfileFraction(cfg.MutexFraction)
	runtime.SetBlockProfileRate(cfg.BlockRate)
	return flightrecorder.Start(cfg.FlightRecorder, log)
}

// servePprof serves Go's profiles at addr. It has a listener of its own because the admin listener is open to whoever
// collects metrics, and a profile shows what is in memory and takes CPU for as long as it is asked to.
func (s *Service) servePprof(addr string) (err error) {
	if s.pprofLis, err = s.Listen("PPROF_ADDR", addr); err != nil {
		return err
	}
	if tcp, ok := s.pprofLis.Addr().(*net.TCPAddr); !ok || !tcp.IP.IsLoopback() {
		return fmt.Errorf("PPROF_ADDR: %s can be reached from other machines, and profiles show what is in memory: listen on 127.0.0.1", s.pprofLis.Addr())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s.ServeHTTP("pprof", s.pprofLis, &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second})
	return nil
}
