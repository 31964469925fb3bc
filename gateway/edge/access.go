package edge

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	optionsv1 "shop.example/gen/shop/options/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
)

// access lets calls through that the option shop.options.v1.access of their method allows.
type access struct {
	operators operators // by their tokens; empty where nobody is one
	// interceptor recovers a check that panics: the server's own gets to see a unary call only once it is allowed.
	interceptor *apierror.Interceptor

	issuer    *issuer // of other tokens; nil for none
	customers bool    // what is anyone's otherwise is for customers
}

func newAccess(operators operators, interceptor *apierror.Interceptor) *access {
	return &access{operators: operators, interceptor: interceptor}
}

// trust lets holders of an issuer's tokens in, before any service is guarded.
func (a *access) trust(cfg OIDC, log *slog.Logger) (err error) {
	if cfg.Issuer == "" {
		if cfg.RequireCustomer || cfg.Audience != "" || cfg.JWKSURL != "" {
			return errors.New("OIDC_ISSUER is not set, but other OIDC_ variables are: set it, or unset them")
		}
		return nil
	}
	a.customers = cfg.RequireCustomer
	a.issuer, err = newIssuer(cfg, log)
	return err
}

// guard returns the service with handlers that check access before anything else, wherever it is registered.
func (a *access) guard(desc *grpc.ServiceDesc) *grpc.ServiceDesc {
	guarded := *desc
	guarded.Methods, guarded.Streams = nil, nil
	for _, m := range desc.Methods {
		m.Handler = a.guardUnary(ruleOf(desc.ServiceName, m.MethodName), m.Handler)
		guarded.Methods = append(guarded.Methods, m)
	}
	for _, s := range desc.Streams {
		s.Handler = a.guardStream(ruleOf(desc.ServiceName, s.StreamName), s.Handler)
		guarded.Streams = append(guarded.Streams, s)
	}
	return &guarded
}

// ruleOf reads the option of a method. A method without a contract is for operators.
func ruleOf(service, method string) optionsv1.Access {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + method))
	if err != nil {
		return optionsv1.Access_ACCESS_OPERATOR
	}
	rule, _ := proto.GetExtension(d.Options(), optionsv1.E_Access).(optionsv1.Access)
	return rule
}

func (a *access) guardUnary(rule optionsv1.Access, handler grpc.MethodHandler) grpc.MethodHandler {
	if rule == optionsv1.Access_ACCESS_UNSPECIFIED && !a.customers {
		return handler
	}
	return func(server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		checked := func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			// There is no request for it to validate: what a request has to be is for those to know who may make it.
			if _, err := a.interceptor.Unary(ctx, nil, info, func(ctx context.Context, _ any) (any, error) {
				return nil, a.check(ctx, rule, request)
			}); err != nil {
				return nil, err
			}
			if interceptor == nil {
				return next(ctx, request)
			}
			return interceptor(ctx, request, info, next)
		}
		return handler(server, ctx, decode, checked)
	}
}

func (a *access) guardStream(rule optionsv1.Access, handler grpc.StreamHandler) grpc.StreamHandler {
	if rule == optionsv1.Access_ACCESS_UNSPECIFIED && !a.customers {
		return handler
	}
	return func(server any, stream grpc.ServerStream) error {
		return handler(server, &guardedStream{ServerStream: stream, access: a, rule: rule})
	}
}

// guardedStream checks each request that is received, because the rule may depend on what it asks for, and checks again
// before each message is sent: a stream lasts longer than the token that opened it.
type guardedStream struct {
	grpc.ServerStream
	access  *access
	rule    optionsv1.Access
	request any // the last one; the streams of the contracts have one request
}

func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	s.request = m
	return s.access.check(s.Context(), s.rule, m)
}

func (s *guardedStream) SendMsg(m any) error {
	if err := s.access.check(s.Context(), s.rule, s.request); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

// knownSubject says whom the token in the header is for, "" where that takes more than a look.
func (a *access) knownSubject(header http.Header) string {
	given := header["Authorization"]
	if len(given) != 1 {
		return ""
	}
	token := bearer(given[0])
	if name, ok := a.operators.find(token); ok {
		return "operator " + name
	}
	if a.issuer != nil && isJWT(token) {
		if p, ok := a.issuer.remembered(token); ok {
			return "token of " + p.subject
		}
	}
	return ""
}

// bearer is the token of an Authorization header; "" where it has another scheme.
func bearer(authorization string) string {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

func isJWT(token string) bool { return strings.Count(token, ".") == 2 }

// check returns an error where the call is not allowed.
func (a *access) check(ctx context.Context, rule optionsv1.Access, request any) error {
	role := a.roleNeeded(rule, request)
	if role == "" {
		return nil
	}
	return a.holds(ctx, role, metadata.ValueFromIncomingContext(ctx, "authorization"))
}

// holds returns an error unless the values of authorization are one token that gives the role.
func (a *access) holds(ctx context.Context, role string, given []string) error {
	if len(given) == 0 && role == customer {
		return apierror.New(codes.Unauthenticated, "CUSTOMER_TOKEN_REQUIRED",
			"this call is for customers: send the token of the issuer as authorization: Bearer <token>")
	}
	if len(given) == 0 {
		return apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_REQUIRED",
			"this call is for operators: send the operator token as authorization: Bearer <token>")
	}
	token := bearer(given[0])
	_, isOperator := a.operators.find(token)
	switch {
	case len(given) == 1 && isOperator:
		return nil
	case len(given) == 1 && a.issuer != nil && isJWT(token):
		return a.checkRole(ctx, token, role)
	}
	return apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_INVALID", "the operator token is not valid")
}

// roleNeeded is the role that a request needs, "" for none.
func (a *access) roleNeeded(rule optionsv1.Access, request any) string {
	if rule == optionsv1.Access_ACCESS_OPERATOR_OR_ORDER_ID {
		if m, ok := request.(proto.Message); ok && contract.OrderID(m) != "" {
			rule = optionsv1.Access_ACCESS_UNSPECIFIED
		}
	}
	switch {
	case rule != optionsv1.Access_ACCESS_UNSPECIFIED:
		return operator
	case a.customers:
		return customer
	}
	return ""
}

func (a *access) checkRole(ctx context.Context, token, role string) error {
	p, err := a.issuer.verify(ctx, token)
	if err != nil {
		return err
	}
	if !p.may(role) {
		return apierror.New(codes.PermissionDenied, "ROLE_REQUIRED", "the token is valid, but does not give the role %s", role).
			WithMetadata("role", role)
	}
	return nil
}
