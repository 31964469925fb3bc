package service

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/platform/mtls"
)

// foreignServices are served beside the service's own, and their contracts are not ours: every client with a certificate
// may call them. They tell whether the service is ready, and what the contracts say.
var foreignServices = []string{"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}

// readCallers reads from the contracts which services may call each method that is served. Its error names the methods
// whose contracts do not say it.
func (s *Service) readCallers() error {
	s.callers = map[string][]string{}
	var without []string
	for service, info := range s.grpc.GetServiceInfo() {
		if slices.Contains(foreignServices, service) {
			continue
		}
		for _, m := range info.Methods {
			method := "/" + service + "/" + m.Name
			callers, err := contract.Callers(method)
			if err != nil || len(callers) == 0 {
				without = append(without, method)
			}
			s.callers[method] = callers
		}
	}
	if len(without) == 0 {
		return nil
	}
	slices.Sort(without)
	return fmt.Errorf("nothing says which services may call %s: give each method the option shop.options.v1.callers", strings.Join(without, ", "))
}

// checkCaller returns an error unless the client's certificate is that of a service which may call the method.
func (s *Service) checkCaller(ctx context.Context, method string) error {
	callers, ours := s.callers[method]
	if !ours {
		return nil // foreign: the server answers for no others
	}
	names := mtls.PeerNames(ctx)
	if slices.ContainsFunc(callers, func(caller string) bool { return slices.Contains(names, caller) }) ||
		len(s.allNames) > 0 && slices.Equal(names, s.allNames) {
		return nil
	}
	s.logger.ErrorContext(ctx, "a service was refused a call that it may not make", "method", method, "certificate", names, "may_call", callers)
	return apierror.New(codes.PermissionDenied, "CALLER_NOT_ALLOWED", "the service that calls may not make this call")
}

func (s *Service) checkUnaryCaller(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := s.checkCaller(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

func (s *Service) checkStreamCaller(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := s.checkCaller(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(server, stream)
}
