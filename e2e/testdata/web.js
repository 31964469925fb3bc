// What a page of another site does with the shop over Connect and gRPC-Web, without a library. It returns what it has seen.
async (shop) => {
  const connect = async (method, message) => {
    const response = await fetch(shop + method, {
      method: "POST",
      headers: {"Content-Type": "application/json", "Connect-Protocol-Version": "1"},
      body: JSON.stringify(message),
    });
    return response.json();
  };
  const placed = await connect("/shop.checkout.v1.CheckoutService/PlaceOrder", {
    customer_name: "Ada", customer_email: "ada@example.org", order_items: [{product_id: 1, quantity: 1}],
  });
  const refused = await connect("/shop.order.v1.OrderService/ListOrders", {});

  const grpcWeb = async (method, message) => {
    const response = await fetch(shop + method, {
      method: "POST",
      headers: {"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1"},
      body: new Uint8Array([0, 0, 0, 0, message.length, ...message]),
    });
    const frames = [];
    const body = new Uint8Array(await response.arrayBuffer());
    for (let at = 0; at < body.length;) {
      const length = new DataView(body.buffer, at + 1).getUint32(0);
      frames.push({flags: body[at], data: body.slice(at + 5, at + 5 + length)});
      at += 5 + length;
    }
    const trailer = frames.find((frame) => frame.flags === 0x80);
    return {
      messages: frames.filter((frame) => frame.flags === 0).length,
      status: (trailer && /grpc-status: *(\d+)/i.exec(new TextDecoder().decode(trailer.data))?.[1]) ?? response.headers.get("grpc-status"),
    };
  };
  const item = await grpcWeb("/shop.inventory.v1.InventoryService/GetItem", [8, 1]);
  const missing = await grpcWeb("/shop.inventory.v1.InventoryService/GetItem", [8, 127]);
  return {
    state: placed.order?.state,
    refused: refused.code,
    reason: refused.details?.some((detail) => atob(detail.value).includes("OPERATOR_TOKEN_REQUIRED")),
    item, missing,
  };
};
