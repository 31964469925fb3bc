// Package access authenticates callers and checks what they may do. Operators have tokens that the shop itself is
// configured with (operators.go); customers and operators can have tokens of an OpenID Connect issuer (oidc.go). The
// contract of each method says who may call it, with the option shop.options.v1.access, and Authorizer enforces that around
// the handlers of a service.
package access

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/domain/email"
	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	accessv1 "shop.example/gen/shop/access/v1"
	optionsv1 "shop.example/gen/shop/options/v1"
	"shop.example/platform/apierror"
)

// Authorizer allows calls as the option shop.options.v1.access of their method says. A call with an invalid token is
// refused even if the method needs no token: otherwise a customer whose token has expired would place an order that does
// not belong to them.
type Authorizer struct {
	operators Operators // by their tokens; empty if nobody is one
	// interceptor recovers a check that panics: the server's own gets to see a unary call only once it is allowed.
	interceptor *apierror.Interceptor

	login Login // may be nil

	tokens    *tokenVerifier // of an issuer's tokens; nil if there is no issuer
	customers bool           // public calls are for customers
}

// Login runs check, which verifies the token of a call, and returns its error; or it returns an error without running check
// if too many invalid tokens came from the same address. It may be called concurrently.
type Login func(ctx context.Context, check func() error) error

// New returns an Authorizer that accepts the operators' tokens. It verifies tokens through login, or directly if login is
// nil.
func New(operators Operators, interceptor *apierror.Interceptor, login Login) *Authorizer {
	return &Authorizer{operators: operators, interceptor: interceptor, login: login}
}

// ConfigureOIDC makes the Authorizer also accept the tokens of an issuer. Call it before Guard. refreshKeys keeps the
// issuer's keys up to date until its context ends, and must be run; it is nil if cfg names no issuer.
func (a *Authorizer) ConfigureOIDC(cfg OIDC, log *slog.Logger, meter metric.Meter) (refreshKeys func(context.Context) error, err error) {
	if cfg.Issuer == "" {
		if cfg.RequireCustomer || cfg.Audience != "" || cfg.JWKSURL != "" {
			return nil, errors.New("OIDC_ISSUER is not set, but other OIDC_ variables are: set it, or unset them")
		}
		return nil, nil
	}
	tokens, err := newTokenVerifier(cfg, log)
	if err != nil {
		return nil, err
	}
	if err := tokens.observe(meter); err != nil {
		return nil, err
	}
	a.tokens, a.customers = tokens, cfg.RequireCustomer
	return tokens.run, nil
}

const (
	customer = "customer"
	operator = "operator"
	// owner is the role of everybody with a token of the issuer: it allows access to what belongs to the token's subject.
	owner = "owner"
)

// Principal is the authenticated caller of a call. It is immutable. A nil Principal is an anonymous caller.
type Principal struct {
	Name    string // of an operator with a token of the shop's own; "" for others
	Issuer  string // as it stands in the token; "" for an operator's own token
	Subject string // whom the issuer gave the token; "" for an operator's own token
	Roles   []string
	expires time.Time // zero for an operator's own token, which does not expire
}

// hasRole reports whether the principal has a role. Operators have all roles, anonymous callers none.
func (p *Principal) hasRole(role string) bool {
	return p != nil && (role == owner && p.Issuer != "" || slices.Contains(p.Roles, role) || slices.Contains(p.Roles, operator))
}

// IsOperator reports whether the principal is an operator.
func (p *Principal) IsOperator() bool { return p.hasRole(operator) }

// Owner returns what an order stores about who placed it: issuer and subject of the token; "" for anonymous callers and for
// operators with a token of the shop.
func (p *Principal) Owner() string {
	if p == nil {
		return ""
	}
	return enduser.Owner(p.Issuer, p.Subject)
}

// OnBehalfOf returns a context for calls to other services, which tells them who makes the call of ctx (package enduser).
func OnBehalfOf(ctx context.Context) context.Context {
	c := &accessv1.EndUser{}
	if p := PrincipalOf(ctx); p != nil {
		c.Issuer, c.Subject, c.Operator, c.Name = p.Issuer, p.Subject, p.IsOperator(), p.Name
	}
	return enduser.With(ctx, c)
}

// KeyScope returns the scope of the caller's idempotency keys, so that two callers can use the same key: the principal
// itself or, for an anonymous caller, the e-mail address of the order.
func (p *Principal) KeyScope(address string) string {
	switch {
	case p == nil:
		return "anybody " + email.Fold(address)
	case p.Issuer == "":
		return operator + " " + p.Name
	}
	return "subject " + p.Owner()
}

type principalKey struct{}

// PrincipalOf returns who makes the call of ctx; nil for an anonymous caller.
func PrincipalOf(ctx context.Context) *Principal {
	p, _ := ctx.Value(principalKey{}).(*Principal)
	return p
}

// WithPrincipal returns ctx for a call that p makes.
func WithPrincipal(ctx context.Context, p *Principal) context.Context {
	if p == nil {
		return ctx
	}
	return context.WithValue(ctx, principalKey{}, p)
}

// foreignRules are the rules of services whose contracts are not ours. Everybody may call them, even if public calls are
// for customers only: load balancers and grpcurl have no token, and what they read is public. They are not guarded, so a
// token is ignored.
var foreignRules = map[string]optionsv1.Access{
	"grpc.health.v1.Health":                    optionsv1.Access_ACCESS_PUBLIC,
	"grpc.reflection.v1.ServerReflection":      optionsv1.Access_ACCESS_PUBLIC,
	"grpc.reflection.v1alpha.ServerReflection": optionsv1.Access_ACCESS_PUBLIC,
}

// ruleOf returns the contract's rule for a method; ACCESS_UNSPECIFIED if it has none.
func ruleOf(service, method string) optionsv1.Access {
	if rule, foreign := foreignRules[service]; foreign {
		return rule
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + method))
	if err != nil {
		return optionsv1.Access_ACCESS_UNSPECIFIED
	}
	rule, _ := proto.GetExtension(d.Options(), optionsv1.E_Access).(optionsv1.Access)
	return rule
}

// CheckRules returns an error that names the methods of served whose contracts do not say who may call them.
func CheckRules(served map[string]grpc.ServiceInfo) error {
	var without []string
	for service, info := range served {
		for _, m := range info.Methods {
			if rule := ruleOf(service, m.Name); rule == optionsv1.Access_ACCESS_UNSPECIFIED || rule == optionsv1.Access_ACCESS_INTERNAL {
				without = append(without, service+"/"+m.Name)
			}
		}
	}
	if len(without) == 0 {
		return nil
	}
	slices.Sort(without)
	return fmt.Errorf("nobody may call %s through a gateway: give each method the option shop.options.v1.access, and not ACCESS_INTERNAL", strings.Join(without, ", "))
}

// Guard returns desc with handlers that check access before they do anything else. Call it after ConfigureOIDC.
func (a *Authorizer) Guard(desc *grpc.ServiceDesc) *grpc.ServiceDesc {
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

func (a *Authorizer) guardUnary(rule optionsv1.Access, handler grpc.MethodHandler) grpc.MethodHandler {
	open := rule == optionsv1.Access_ACCESS_PUBLIC && !a.customers
	return func(server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		given := authorizationIn(ctx)
		if open && len(given) == 0 {
			return handler(server, ctx, decode, interceptor)
		}
		checked := func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			var caller *Principal
			// Without the request, which is not validated yet: only who may make a call is told what is wrong with it.
			_, err := a.interceptor.Unary(ctx, nil, info, func(ctx context.Context, _ any) (_ any, err error) {
				caller, err = a.requireRole(ctx, a.roleFor(rule, request), given)
				return nil, err
			})
			if err != nil {
				return nil, err
			}
			ctx = WithPrincipal(ctx, caller)
			if interceptor == nil {
				return next(ctx, request)
			}
			return interceptor(ctx, request, info, next)
		}
		return handler(server, ctx, decode, checked)
	}
}

func (a *Authorizer) guardStream(rule optionsv1.Access, handler grpc.StreamHandler) grpc.StreamHandler {
	return func(server any, stream grpc.ServerStream) error {
		return handler(server, &guardedStream{
			ServerStream: stream, access: a, rule: rule, role: a.roleFor(rule, nil), given: authorizationIn(stream.Context()),
		})
	}
}

// guardedStream checks each request that it receives, because the rule may depend on the request, and the token again
// before each message that it sends, because a stream can outlive its token.
type guardedStream struct {
	grpc.ServerStream
	access *Authorizer
	rule   optionsv1.Access
	role   string          // that the last request needs; the streams of the contracts have one request
	given  []string        // what was sent to say who calls
	ctx    context.Context // with the principal; nil before the first request
}

// Context returns the stream's context, which has the principal once a request was received.
func (s *guardedStream) Context() context.Context {
	if s.ctx == nil {
		return s.ServerStream.Context()
	}
	return s.ctx
}

// RecvMsg receives a request and checks it.
func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	ctx := s.ServerStream.Context()
	s.role = s.access.roleFor(s.rule, m)
	caller, err := s.access.requireRole(ctx, s.role, s.given)
	s.ctx = WithPrincipal(ctx, caller)
	return err
}

// SendMsg sends a message if the caller's token is still valid.
func (s *guardedStream) SendMsg(m any) error {
	if s.role != "" || len(s.given) > 0 { // else the call needs no token, and has none
		if _, err := s.access.checkRole(s.ServerStream.Context(), s.role, s.given); err != nil {
			return err
		}
	}
	return s.ServerStream.SendMsg(m)
}

func authorizationIn(ctx context.Context) []string {
	return metadata.ValueFromIncomingContext(ctx, "authorization")
}

// CachedSubject returns the subject of the token in the header if that was verified a short time ago, otherwise "". It is
// cheap enough to call before any limit is checked.
func (a *Authorizer) CachedSubject(header http.Header) string {
	given := header["Authorization"]
	if len(given) != 1 {
		return ""
	}
	token := bearer(given[0])
	if name, ok := a.operators.find(token); ok {
		return "operator " + name
	}
	if a.tokens != nil && isJWT(token) {
		if p, ok := a.tokens.cached(token); ok {
			return "token of " + p.Subject
		}
	}
	return ""
}

// bearer returns the token in an Authorization header; "" if the header has another scheme.
func bearer(authorization string) string {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

func isJWT(token string) bool { return strings.Count(token, ".") == 2 }

// roleFor returns the role that a request needs, "" for none. If customers are required, an owner must be a customer.
func (a *Authorizer) roleFor(rule optionsv1.Access, request any) string {
	if rule == optionsv1.Access_ACCESS_OPERATOR_OR_ORDER_ID {
		if m, ok := request.(proto.Message); ok && orderid.Of(m) != "" {
			rule = optionsv1.Access_ACCESS_PUBLIC
		}
	}
	switch {
	case rule == optionsv1.Access_ACCESS_OPERATOR_OR_OWNER && a.tokens != nil && a.customers:
		return customer
	case rule == optionsv1.Access_ACCESS_OPERATOR_OR_OWNER && a.tokens != nil:
		return owner
	case rule != optionsv1.Access_ACCESS_PUBLIC:
		return operator
	case a.customers:
		return customer
	}
	return ""
}

// RequireOperator returns an error unless given, the values of the header Authorization, are those of an operator.
func (a *Authorizer) RequireOperator(ctx context.Context, given []string) error {
	_, err := a.requireRole(ctx, operator, given)
	return err
}

// requireRole is checkRole at the beginning of a call: if a token is sent it counts as a login.
func (a *Authorizer) requireRole(ctx context.Context, role string, given []string) (*Principal, error) {
	if len(given) == 0 || a.login == nil {
		return a.checkRole(ctx, role, given)
	}
	var caller *Principal
	err := a.login(ctx, func() (err error) {
		caller, err = a.checkRole(ctx, role, given)
		return err
	})
	return caller, err
}

// checkRole returns who calls, by the values of the header Authorization. It returns an error unless the caller has the
// role, and for an invalid token whatever the role is. Everybody has the role "".
func (a *Authorizer) checkRole(ctx context.Context, role string, given []string) (*Principal, error) {
	caller, err := a.authenticate(ctx, given)
	switch {
	case err != nil:
		return nil, err
	case role == "" || caller.hasRole(role):
		return caller, nil
	case caller != nil:
		return nil, apierror.New(codes.PermissionDenied, "ROLE_REQUIRED", "the token is valid, but does not give the role %s", role).
			WithMetadata("role", role)
	case role == customer || role == owner:
		return nil, apierror.New(codes.Unauthenticated, "CUSTOMER_TOKEN_REQUIRED",
			"this call is for customers: send the token of the issuer as authorization: Bearer <token>")
	}
	return nil, apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_REQUIRED",
		"this call is for operators: send the operator token as authorization: Bearer <token>")
}

// authenticate returns the principal of the token in given; nil if there is no token.
func (a *Authorizer) authenticate(ctx context.Context, given []string) (*Principal, error) {
	if len(given) == 0 {
		return nil, nil
	}
	if len(given) == 1 {
		token := bearer(given[0])
		if name, ok := a.operators.find(token); ok {
			return &Principal{Name: name, Roles: []string{operator}}, nil
		}
		if a.tokens != nil && isJWT(token) {
			return a.tokens.verify(ctx, token)
		}
		if strings.EqualFold(strings.TrimSpace(given[0]), "Bearer") { // from a variable that is not set
			return nil, apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_INVALID",
				"the token is empty; a call that needs no token has to be sent without the header Authorization")
		}
	}
	return nil, apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_INVALID",
		"the operator token is not valid; a call that needs no token has to be sent without one")
}
