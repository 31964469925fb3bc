import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;
import shop.client.ApiClient;
import shop.client.ApiException;
import shop.client.api.CheckoutServiceApi;
import shop.client.api.InventoryServiceApi;
import shop.client.api.OrderServiceApi;
import shop.client.model.ErrorDetail;
import shop.client.model.ErrorResponse;
import shop.client.model.Item;
import shop.client.model.Order;
import shop.client.model.PlaceOrderRequest;
import shop.client.model.PlaceOrderRequestItem;
import shop.client.model.UpdateItemBody;

class Client {
  public static void main(String[] args) throws Exception {
    int product = Integer.parseInt(System.getenv("PRODUCT"));
    int unsold = Integer.parseInt(System.getenv("UNSOLD_PRODUCT"));
    ApiClient client = new ApiClient();
    client.updateBaseUri(System.getenv("SHOP_URL"));
    client.setRequestInterceptor(request -> request.header("Authorization", "Bearer " + System.getenv("SHOP_OPERATOR_TOKEN")));
    OrderServiceApi orders = new OrderServiceApi(client);
    InventoryServiceApi inventory = new InventoryServiceApi(client);

    PlaceOrderRequest request = new PlaceOrderRequest().customerName("Ada").customerEmail("ada@example.org")
        .orderItems(List.of(new PlaceOrderRequestItem().productId(product).quantity(2)));
    Order order = new CheckoutServiceApi(client).checkoutServicePlaceOrder(request, null, "wait=20");
    check("CONFIRMED", order.getState());
    UUID id = UUID.fromString(order.getId());
    check(2, orders.orderServiceGetOrder(id, null).getTotalItems());
    check(true, orders.orderServiceListOrders(null, null, "CONFIRMED", null, null, null, null, null).getOrders().stream().anyMatch(o -> o.getId().equals(order.getId())));
    check("CANCELLED", orders.orderServiceCancelOrder(id, Map.of(), null).getState());

    Item item = inventory.inventoryServiceGetItem(unsold, null);
    UpdateItemBody changed = client.getObjectMapper().convertValue(item, UpdateItemBody.class).onHand(item.getOnHand() + 1);
    check(item.getOnHand() + 1, inventory.inventoryServiceUpdateItem(unsold, changed, null).getOnHand());

    try {
      inventory.inventoryServiceGetItem(999999, null);
      throw new AssertionError("a product that there is not");
    } catch (ApiException refused) {
      ErrorResponse error = client.getObjectMapper().readValue(refused.getResponseBody(), ErrorResponse.class);
      check("ITEM_NOT_FOUND", error.getDetails().stream().map(ErrorDetail::getReason).filter(Objects::nonNull).findFirst().orElseThrow());
    }
  }

  static void check(Object want, Object got) {
    if (!want.equals(got)) {
      throw new AssertionError("got " + got + ", want " + want);
    }
  }
}
