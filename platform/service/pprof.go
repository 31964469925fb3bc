package service

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

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
