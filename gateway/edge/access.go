package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/domain/enduser"
	"shop.example/domain/orderid"
	accessv1 "shop.example/gen/shop/access/v1"
	optionsv1 "shop.example/gen/shop/options/v1"
	"shop.example/platform/apierror"
)

// access lets calls through that the option shop.options.v1.access of their method allows. Who sends a token that is not
// valid is refused, whatever is called: a client that means to be somebody must not be taken for nobody.
type access struct {
	operators operators // by their tokens; empty where nobody is one
	// interceptor recovers a check that panics: the server's own gets to see a unary call only once it is allowed.
	interceptor *apierror.Interceptor

	tokens    *tokenVerifier // of an issuer's tokens; nil if there is no issuer
	customers bool           // public calls are for customers
}

func newAccess(operators operators, interceptor *apierror.Interceptor) *access {
	return &access{operators: operators, interceptor: interceptor}
}

// configureOIDC lets holders of an issuer's tokens in, before any service is guarded.
func (a *access) configureOIDC(cfg OIDC, log *slog.Logger) (err error) {
	if cfg.Issuer == "" {
		if cfg.RequireCustomer || cfg.Audience != "" || cfg.JWKSURL != "" {
			return errors.New("OIDC_ISSUER is not set, but other OIDC_ variables are: set it, or unset them")
		}
		return nil
	}
	a.customers = cfg.RequireCustomer
	a.tokens, err = newTokenVerifier(cfg, log)
	return err
}

const (
	customer = "customer"
	operator = "operator"
	// owner is the role of whoever has a token of the issuer: what belongs to its subject is theirs.
	owner = "owner"
)

// principal is who makes a call, by a token that is valid. It does not change.
type principal struct {
	name    string // of an operator with a token of the shop's own; "" for others
	issuer  string // as it stands in the token; "" for an operator's own token
	subject string // whom the issuer gave the token; "" for an operator's own token
	roles   []string
	expires time.Time // zero for an operator's own token, which does not expire
}

// hasRole says whether the principal has a role. Operators may do what others may. Nobody, nil, has none.
func (p *principal) hasRole(role string) bool {
	return p != nil && (role == owner && p.issuer != "" || slices.Contains(p.roles, role) || slices.Contains(p.roles, operator))
}

// owner is what an order keeps of whom placed it: issuer and subject of the token; "" if that is nobody, or an operator.
func (p *principal) owner() string {
	if p == nil {
		return ""
	}
	return enduser.Owner(p.issuer, p.subject)
}

// onBehalfOf returns ctx for calls of other services that are made for whoever makes the call that ctx is of.
func onBehalfOf(ctx context.Context) context.Context {
	c := &accessv1.EndUser{}
	if p := principalIn(ctx); p != nil {
		c.Issuer, c.Subject, c.Operator, c.Name = p.issuer, p.subject, p.hasRole(operator), p.name
	}
	return enduser.With(ctx, c)
}

// keyScope is whose idempotency keys the principal uses: its own, or those of whoever gives this e-mail address.
func (p *principal) keyScope(email string) string {
	switch {
	case p == nil:
		return "anybody " + strings.ToLower(email)
	case p.issuer == "":
		return operator + " " + p.name
	}
	return "subject " + p.owner()
}

type principalKey struct{}

// principalIn returns who makes the call that ctx is of, nil for nobody.
func principalIn(ctx context.Context) *principal {
	p, _ := ctx.Value(principalKey{}).(*principal)
	return p
}

func withPrincipal(ctx context.Context, p *principal) context.Context {
	if p == nil {
		return ctx
	}
	return context.WithValue(ctx, principalKey{}, p)
}

// foreignRules are for services whose contracts are not ours. They are open to everybody, also if public calls are for
// customers: load balancers and grpcurl have no token, and what they learn is in the documents. Access does not guard
// them, so a token is not looked at.
var foreignRules = map[string]optionsv1.Access{
	"grpc.health.v1.Health":                    optionsv1.Access_ACCESS_PUBLIC,
	"grpc.reflection.v1.ServerReflection":      optionsv1.Access_ACCESS_PUBLIC,
	"grpc.reflection.v1alpha.ServerReflection": optionsv1.Access_ACCESS_PUBLIC,
}

// ruleOf returns who may call a method; ACCESS_UNSPECIFIED if nothing says so.
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

// checkRules returns an error that names the methods that are served without a rule.
func checkRules(served map[string]grpc.ServiceInfo) error {
	var without []string
	for service, info := range served {
		for _, m := range info.Methods {
			if ruleOf(service, m.Name) == optionsv1.Access_ACCESS_UNSPECIFIED {
				without = append(without, service+"/"+m.Name)
			}
		}
	}
	if len(without) == 0 {
		return nil
	}
	slices.Sort(without)
	return fmt.Errorf("nothing says who may call %s: give each method the option shop.options.v1.access", strings.Join(without, ", "))
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

func (a *access) guardUnary(rule optionsv1.Access, handler grpc.MethodHandler) grpc.MethodHandler {
	open := rule == optionsv1.Access_ACCESS_PUBLIC && !a.customers
	return func(server any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		given := authorizationIn(ctx)
		if open && len(given) == 0 {
			return handler(server, ctx, decode, interceptor)
		}
		checked := func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			var caller *principal
			// There is no request for it to validate: what a request has to be is for those to know who may make it.
			_, err := a.interceptor.Unary(ctx, nil, info, func(ctx context.Context, _ any) (_ any, err error) {
				caller, err = a.requireRole(ctx, a.roleFor(rule, request), given)
				return nil, err
			})
			if err != nil {
				return nil, err
			}
			ctx = withPrincipal(ctx, caller)
			if interceptor == nil {
				return next(ctx, request)
			}
			return interceptor(ctx, request, info, next)
		}
		return handler(server, ctx, decode, checked)
	}
}

func (a *access) guardStream(rule optionsv1.Access, handler grpc.StreamHandler) grpc.StreamHandler {
	return func(server any, stream grpc.ServerStream) error {
		return handler(server, &guardedStream{
			ServerStream: stream, access: a, rule: rule, role: a.roleFor(rule, nil), given: authorizationIn(stream.Context()),
		})
	}
}

// guardedStream checks each request that is received, because the rule may depend on what it asks for, and checks again
// before each message is sent: a stream lasts longer than the token that opened it.
type guardedStream struct {
	grpc.ServerStream
	access *access
	rule   optionsv1.Access
	role   string          // that the last request needs; the streams of the contracts have one request
	given  []string        // what was sent to say who calls
	ctx    context.Context // with the principal; nil before the first request
}

// Context has the principal, once a request was received.
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
	s.ctx = withPrincipal(ctx, caller)
	return err
}

// SendMsg sends a message if the caller's token is still good.
func (s *guardedStream) SendMsg(m any) error {
	if s.role != "" || len(s.given) > 0 { // else nobody calls, and nobody needs to be anybody
		if _, err := s.access.checkRole(s.ServerStream.Context(), s.role, s.given); err != nil {
			return err
		}
	}
	return s.ServerStream.SendMsg(m)
}

func authorizationIn(ctx context.Context) []string {
	return metadata.ValueFromIncomingContext(ctx, "authorization")
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
	if a.tokens != nil && isJWT(token) {
		if p, ok := a.tokens.remembered(token); ok {
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

// roleFor is the role that a request needs, "" for none. An owner has to be a customer if customers are required.
func (a *access) roleFor(rule optionsv1.Access, request any) string {
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

// requireRole is checkRole for a call that begins: a token that is refused is a failed login.
func (a *access) requireRole(ctx context.Context, role string, given []string) (*principal, error) {
	if len(given) == 0 {
		return a.checkRole(ctx, role, nil)
	}
	if err := loginIn(ctx).allowed(ctx); err != nil {
		return nil, err
	}
	caller, err := a.checkRole(ctx, role, given)
	if err != nil {
		loginFailed(ctx, err)
		return nil, err
	}
	loginIn(ctx).succeeded()
	return caller, nil
}

// checkRole returns who calls, by the values of authorization, and an error unless they have the role. "" is for
// everybody, and still an error if what was sent is not one token that is valid.
func (a *access) checkRole(ctx context.Context, role string, given []string) (*principal, error) {
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

// authenticate returns whose token the values of authorization are; nil if there are none.
func (a *access) authenticate(ctx context.Context, given []string) (*principal, error) {
	if len(given) == 0 {
		return nil, nil
	}
	if len(given) == 1 {
		token := bearer(given[0])
		if name, ok := a.operators.find(token); ok {
			return &principal{name: name, roles: []string{operator}}, nil
		}
		if a.tokens != nil && isJWT(token) {
			return a.tokens.verify(ctx, token)
		}
	}
	return nil, apierror.New(codes.Unauthenticated, "OPERATOR_TOKEN_INVALID",
		"the operator token is not valid; a call that needs no token has to be sent without one")
}
